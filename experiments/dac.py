"""Dynamic algorithm configuration: policies against the best static settings and schedules.

Where nothing has a derivative, a policy's few numbers are searched: how many bits a local search
flips on LeadingOnes, whose best policy is known exactly; an action that follows a sigmoid; the
sequence of Luby. Where a derivative exists it is used: learning rate and momentum of stochastic
gradient descent, as functions of time, of the loss and of how the gradient turns, on small
quadratics and on real trainings. All are judged on instances, and on horizons, never seen: by exact
expectations, by runs with other random numbers, by trainings of other data.

The sigmoid, Luby and gradient descent on toy functions are problems of DACBench, written from their
published definitions.

Adriaensen et al., "Automated dynamic algorithm configuration" (JAIR 2022); Biedenkapp et al.,
"Theory-inspired parameter control benchmarks for dynamic algorithm configuration" (GECCO 2022);
Eimer et al., "DACBench" (IJCAI 2021).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.leading_ones import expected, optimum, simulate
from experiments.data.trainings import loss, trainings
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, Unrolled
from hypergrad.outer import Alternating, run
from hypergrad.policy import (
    InstancesProblem,
    Judgement,
    LinearPolicy,
    OverInstances,
    PolicyStep,
    Range,
    Unseen,
    judge,
)
from strategies import BayesSearcher
from strategies.local import minimize
from strategies.policies import Linear, Rollouts, Table, Thresholds

#: Bits that a step may flip, from the start of a run on.
PORTFOLIO = [16, 8, 4, 2, 1]
#: Training losses are told apart down to this; below, everything is learned by heart.
FLOOR = 1e-4
#: Of the best static rate: where a policy begins, and the range that it never leaves: features go
#: where they have not been before when a training is longer.
CAREFUL, LEAST, MOST = 0.3, 1 / 30, 3.0
RATES, MOMENTA = np.logspace(-2.5, 0.5, 10), (0.0, 0.5, 0.9, 0.95)

# -- without derivatives ---------------------------------------------------------------------


def leading_ones(context: Context) -> None:
    """Thresholds over the share of bits that are right, from noisy runs."""
    options, policy = context.options, Thresholds("share", PORTFOLIO)

    def one(choose: Any, n: int, rng: np.random.Generator) -> int:
        return simulate(n, lambda i: choose({"share": i / n}), rng)

    def exact(config: Any, n: int) -> float:
        chosen = [policy.choose(config, {"share": i / n}) for i in range(n)]
        return expected(n, lambda values: np.array(chosen)[values])

    objective = Rollouts(policy, one, [50], runs=10, seed=options.seed)
    found = minimize(
        objective,
        policy.space,
        trials=options.trials,
        searcher=BayesSearcher(policy.space, seed=options.seed),
    )
    rows, ratios = [], {}
    for n in (50, 100, 1000):
        best, _ = optimum(n)
        limited, _ = optimum(n, PORTFOLIO)
        static = min(expected(n, lambda i, k=k: np.full_like(i, k)) for k in PORTFOLIO)
        tuned = exact(found.best_config, n)
        ratios[n] = tuned / limited
        rows.append(
            {"n": n, "best": best, "best of 1, 2, 4, 8, 16": limited, "static": static,
             "policy": tuned, "policy / best of these": ratios[n]}
        )  # fmt: skip
    context.table("LeadingOnes: exact expected steps; tuned by runs at n = 50", rows)
    values = np.arange(100)
    chosen = [policy.choose(found.best_config, {"share": i / 100}) for i in values]
    context.plot(
        "leading_ones",
        {
            "best": Curve(values, optimum(100)[1].astype(float)),
            "best of 1, 2, 4, 8, 16": Curve(values, optimum(100, PORTFOLIO)[1].astype(float)),
            "policy tuned at n = 50": Curve(values, np.array(chosen, float)),
        },
        x="leading ones, of 100",
        y="bits flipped",
        y_scale="log",
    )
    context.measure("leading_ones", ratios[50])
    context.measure("leading_ones_unseen", ratios[100])


def sigmoid(choose: Any, instance: tuple[float, float], rng: np.random.Generator) -> float:
    """Ten steps; the cost of one is the distance of the action's share from the sigmoid."""
    slope, shift = instance
    cost = 0.0
    for t in range(10):
        phase = slope * (t - shift)
        level = 1 / (1 + np.exp(-phase))
        cost += abs(level - round(choose({"phase": np.tanh(phase / 4)})) / 2)
    return cost


def luby(choose: Any, length: int, rng: np.random.Generator) -> float:
    """The share of wrong exponents.

    The policy sees how often it has played its last one since it played a larger one.
    """
    played: list[int] = []
    wrong = 0
    for t in range(1, length + 1):
        block = t
        while (block + 1) & block:  # not of the form 2^k - 1
            block -= (1 << (block.bit_length() - 1)) - 1
        target = block.bit_length() - 1
        last = played[-1] if played else -1
        since = 0
        for action in reversed(played):
            if action > last:
                break
            since += action == last
        up = choose({"repeats": float(since)}) == "up"
        played.append(last + 1 if up or last < 0 else 0)
        wrong += played[-1] != target
    return wrong / length


def toys(context: Context) -> None:
    """Sigmoid and Luby: the share of the way from the best static action to the optimum."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    instances = [
        (s, p) for s, p in zip(rng.uniform(-3, 3, 60), rng.normal(5, 2.5, 60), strict=True)
    ]
    follow = Linear(["phase"], 0.0, 2.0)
    objective = Rollouts(follow, sigmoid, instances[:30])
    found = minimize(
        objective, follow.space, trials=25, searcher=BayesSearcher(follow.space, seed=options.seed)
    )
    unseen = instances[30:]
    mine = objective.judge(found.best_config, unseen).mean
    static = min(objective.judge_choice(lambda _, a=a: a, unseen).mean for a in range(3))
    levels = [1 / (1 + np.exp(-s * (np.arange(10) - p))) for s, p in unseen]
    best = float(np.mean([np.abs(v - np.round(2 * v) / 2).sum() for v in levels]))
    rows = [{"problem": "sigmoid", "best static": static, "policy": mine, "optimum": best}]
    closed = [(static - mine) / (static - best)]

    repeat = Table({"repeats": (0.5, 3.5, 3)}, ["zero", "up"])
    objective = Rollouts(repeat, luby, [32])
    found = minimize(
        objective, repeat.space, trials=8, searcher=BayesSearcher(repeat.space, seed=options.seed)
    )
    mine = objective.judge(found.best_config, [1000]).mean
    # Luby's sequence is 0 at every other place and a bit more often at the start of a block.
    exponents = np.array(luby_exponents(1000))
    static = min(float(np.mean(exponents != a)) for a in range(4))
    rows.append({"problem": "Luby", "best static": static, "policy": mine, "optimum": 0.0})
    closed.append((static - mine) / static)
    context.table("toy problems: cost on instances and lengths not seen", rows)
    context.measure("toys", min(closed))


def luby_exponents(length: int) -> list[int]:
    """By the recursion: twice the sequence so far, and one more than its largest."""
    sequence = [0]
    while len(sequence) < length:
        sequence = sequence + sequence + [max(sequence) + 1]
    return sequence[:length]


# -- with derivatives ------------------------------------------------------------------------


def sgd(settings: dict) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum."""
    return optax.chain(optax.trace(settings["momentum"]), optax.scale(-settings["rate"]))


def schedule(theta: dict, features: jax.Array) -> dict:
    """The same settings all along, or a rate that goes down to zero along a cosine."""
    decay = (1 + jnp.cos(jnp.pi * jnp.minimum(features[1], 1))) / 2
    rate = theta["rate"] * jnp.where(theta["anneal"], decay, 1.0)
    return {"rate": rate, "momentum": theta["momentum"]}


class Set(NamedTuple):
    """Instances: their starts, training data of each step, and data of the outer loss."""

    params: Any
    inner: Any
    outer: Any


def best_of_grid(
    one: BilevelProblem, step: PolicyStep, data: Set, stacked: bool, anneal: bool
) -> dict:
    """The rate and momentum of the smallest mean log loss on the instances given."""
    grid = [
        {
            "rate": jnp.float32(rate),
            "momentum": jnp.float32(momentum),
            "anneal": jnp.asarray(anneal),
        }
        for momentum in MOMENTA
        for rate in RATES
    ]
    means = [judge(one, step, data[0], theta, *data[1:], stacked=stacked).mean for theta in grid]
    return grid[int(np.argmin(means))]


def learned(
    context: Context,
    one: BilevelProblem,
    horizon: int,
    seen: Set,
    guard: Set,
    tests: dict[str, tuple[Set, int]],
    *,
    stacked: bool,
    steps: int,
    size: float,
    title: str,
) -> tuple[dict[str, dict[str, Judgement]], dict[str, Curve]]:
    """A policy by hypergradients, and the best static and cosine settings, on each test."""
    plain = PolicyStep(sgd, schedule, horizon)
    with context.progress(title, total=steps + 2) as bar:
        chosen = {}
        for name in ("static", "cosine"):
            chosen[name] = best_of_grid(one, plain, seen, stacked, name == "cosine")
            bar.advance()
        rate, momentum = (float(chosen["static"][name]) for name in ("rate", "momentum"))
        policy = LinearPolicy(
            {
                # The best static rate is at the edge of stability, where derivatives say nothing.
                "rate": Range(LEAST * rate, MOST * rate, CAREFUL * rate, log=True),
                "momentum": Range(0.0, 0.99, min(max(momentum, 0.1), 0.9)),
            }
        )
        step = PolicyStep(sgd, policy, horizon)
        loop = Alternating(
            OverInstances(Unrolled(step, horizon, stacked=stacked), clip=1.0),
            optax.adam(optax.cosine_decay_schedule(size, steps)),
            start="cold",
        )
        theta = jax.tree.map(jnp.float32, policy.init(len(step.features.names)))
        unseen = Unseen(one, step, *guard, stacked=stacked)
        found = run(
            InstancesProblem(one),
            loop,
            seen.params,
            theta,
            seen.inner,
            seen.outer,
            steps=steps,
            callbacks=[unseen, lambda report: bar.advance(incumbent=report.row["value"])],
        )
    rivals = {name: (plain, theta) for name, theta in chosen.items()}
    # Where the guard's instances say that nothing was learned, the static settings are the policy.
    fallback = judge(one, plain, guard.params, chosen["static"], *guard[1:], stacked=stacked)
    better = unseen.value < fallback.mean
    rivals["policy"] = (step, unseen.hparams) if better else rivals["static"]
    if not better:
        context.say(f"{title}: the guard prefers the static settings to the policy.")
    judged = {
        test: {
            name: judge(
                one, made, data.params, theta, data.inner, data.outer,
                horizon=length, stacked=stacked,
            )
            for name, (made, theta) in rivals.items()
        }
        for test, (data, length) in tests.items()
    }  # fmt: skip
    return judged, {
        "instances learned from": Curve(
            np.arange(1, steps + 1), [row["value"] for row in found.history]
        ),
        "instances of the guard": Curve(*np.transpose(unseen.history)),
    }


def ratios(judged: dict[str, Judgement]) -> dict[str, float]:
    """Geometric mean of the policy's final loss over that of the others."""
    return {
        name: float(np.exp(judged["policy"].excess(judged[name])[0]))
        for name in ("static", "cosine")
    }


def quadratics(context: Context) -> None:
    """Ten steps of gradient descent on parabolas of unknown curvature and place."""
    rng = np.random.default_rng(context.options.seed)

    def drawn(count: int) -> Set:
        shape = jnp.asarray(np.exp(rng.uniform(np.log(0.2), np.log(5), count)), jnp.float32)
        data = (shape, jnp.asarray(rng.uniform(-2, 2, count), jnp.float32))
        return Set(jnp.asarray(rng.uniform(-5, 5, count), jnp.float32), data, data)

    def value(x: jax.Array, theta: Any, batch: tuple) -> jax.Array:
        return batch[0] * (x - batch[1]) ** 2 + 1e-6

    one = BilevelProblem(value, lambda x, theta, batch: jnp.log(value(x, theta, batch)))
    judged, _ = learned(
        context, one, 10, drawn(40), drawn(40), {"unseen": (drawn(40), 10)}, stacked=False,
        steps=context.options.toy_steps, size=0.1, title="quadratics",
    )  # fmt: skip
    found = ratios(judged["unseen"])
    context.table(
        "toy gradient descent: final regret on parabolas not seen, geometric mean of the ratio",
        [{"policy over": name, "ratio": ratio} for name, ratio in found.items()],
    )
    context.measure("toy_sgd", found["static"])


def real(context: Context) -> None:
    """Mini-batch trainings of real data; the outer loss is the log of the whole training loss."""
    options = context.options
    horizon, count = options.horizon, options.judges
    one = BilevelProblem(loss, lambda p, theta, batch: jnp.log(loss(p, theta, batch) + FLOOR))

    def drawn(count: int, length: int, seed: int) -> tuple[Set, list[str]]:
        made = trainings(count, length, seed)
        return Set(*made[:3]), made.names

    seen, _ = drawn(options.instances, horizon, options.seed)
    guard, _ = drawn(count, horizon, options.seed + 1)
    unseen, names = drawn(count, horizon, options.seed + 12)
    longer, _ = drawn(count, 3 * horizon, options.seed + 13)
    judged, history = learned(
        context, one, horizon, seen, guard,
        {"unseen": (unseen, horizon), "unseen, three times as long": (longer, 3 * horizon)},
        stacked=True, steps=options.steps, size=1.2 / options.steps, title="trainings",
    )  # fmt: skip
    rows = []
    for test, each in judged.items():
        found = ratios(each)
        rows.append(
            {"instances": test, "policy / static": found["static"],
             "policy / cosine": found["cosine"],
             "won against static": int(np.sum(each["policy"].values < each["static"].values)),
             "won against cosine": int(np.sum(each["policy"].values < each["cosine"].values)),
             "of": count}
        )  # fmt: skip
    context.table("real trainings: final training loss, geometric mean of the ratio", rows)
    context.measure("static", rows[0]["policy / static"])
    context.measure("cosine", rows[0]["policy / cosine"])
    context.measure("longer", rows[1]["policy / static"])
    x = np.arange(horizon)
    shown = judged["unseen"]["policy"].settings["rate"]
    first = [names.index(name) for name in dict.fromkeys(names)]
    context.plot(
        "rates",
        {names[i]: Curve(x, shown[i]) for i in first},
        x="training step",
        y="learning rate that the policy chose",
        y_scale="log",
    )
    context.plot(
        "losses",
        {
            name: Curve.of_runs(np.log10(each.losses + FLOOR), x)
            for name, each in judged["unseen"].items()
        },
        x="training step",
        y="log10 of the mini-batch loss, instances not seen",
    )
    context.plot(
        "learning",
        history,
        x="outer step",
        y="mean log of the final training loss",
    )


@experiment(
    paper="Adriaensen et al. 2022, arXiv:2205.13881",
    options=[
        Option("trials", 100, quick=20, help="policies tried on LeadingOnes"),
        Option("instances", 12, quick=8, help="trainings to learn from"),
        Option("judges", 48, quick=8, help="trainings of the guard, and of each test"),
        Option("horizon", 80, quick=30, help="steps of a training"),
        Option("steps", 40, quick=25, help="outer steps on the trainings"),
        Option("toy_steps", 150, quick=40, help="outer steps on the parabolas"),
    ],
    claims=[
        Claim(
            "leading_ones",
            "LeadingOnes: exact expected steps of the tuned policy, over the optimum",
            at_most=1.03,
            quick=1.15,
        ),
        Claim(
            "leading_ones_unseen",
            "the same policy at twice the size, over the optimum there (static: 1.28)",
            at_most=1.05,
            quick=1.2,
        ),
        Claim(
            "toys",
            "sigmoid and Luby: share of the way from static to optimal, unseen, the smaller",
            at_least=0.9,
            quick=0.8,
        ),
        Claim(
            "toy_sgd",
            "parabolas: final regret over the best static settings",
            at_most=0.5,
            quick=1.0,
        ),
        Claim(
            "static",
            "trainings not seen: final loss of the policy over the best static settings",
            at_most=0.9,
            quick=1.05,
        ),
        Claim("cosine", "the same over the best cosine schedule", at_most=1.0, quick=1.3),
        Claim(
            "longer",
            "trainings not seen, three times as long: over the best static settings",
            at_most=1.0,
            quick=1.2,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Search where there is no derivative, descend where there is."""
    leading_ones(context)
    toys(context)
    quadratics(context)
    real(context)


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
