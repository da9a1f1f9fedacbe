"""A learned optimizer on wider networks and longer trainings than it was learned on.

The step of `LearnedOptimizer` is a network of eight units, which begins as Adam. It is learned on a
narrow network that classifies clothes, by the derivative of the last steps of short trainings
(`TruncatedUnrolled`), and by persistent evolution strategies. Those look at a few steps at a time,
however long a training is, and so learn on whole ones, five times as long, from starts that are
drawn anew. (On the short ones they were learned to end early: after five times the steps the loss
was above that of the Adam they began as.) At that width muP changes nothing: the weights that do
better there are then used on a wide network with its rule and without.
Beside them Adam with the rate that the learning began with, and the best of a grid of rates at the
narrow width, both under the rule.

All losses are of training examples, means of the last tenth of the steps.

Thérien et al., "μLO: Compute-Efficient Meta-Generalization of Learned Optimizers" (2024); Vicol et
al. (2021).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import fashion_mnist
from experiments.data.workloads import Workload, classified, dense, layers
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.learned_optimizer import LearnedOptimizer
from hypergrad.transfer import Parametrization, infer
from hypergrad.transfer.rules import Kind
from hypergrad.unrolled import PersistentEvolution, TruncatedUnrolled

NARROW, BATCH = 32, 32
#: Adam's, at which learning begins: a cautious one.
RATE = 1e-3
RATES = RATE * 2.0 ** np.arange(0, 8)
#: Steps that are differentiated, or between two looks of the evolution strategies.
WINDOW = 5
#: Steps of a training relative to those of the short ones.
TIMES = 5
LEARNED = LearnedOptimizer(RATE)


def network(width: int) -> Workload:
    """Two hidden layers on 14 x 14 pixels."""
    train, _ = fashion_mnist()
    x = train.x[:4096].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
    x = (x - x.mean()) / x.std()

    def loss(params: list, rows: tuple) -> jax.Array:
        return classified(dense(params, rows[0]), rows[1])

    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(train.y[:4096], jnp.int32)
    return Workload(layers([196, width, width, 10]), loss, arrays)


def rule_at(width: int, kind: Kind = "mup") -> Parametrization:
    """From the shapes at two widths."""
    shapes = [
        jax.eval_shape(layers([196, w, w, 10]), jax.random.key(0))
        for w in (NARROW, 2 * NARROW, width)
    ]
    return infer(*shapes[:2], kind=kind).at(shapes[2])


def meta_trained(kind: str, work: Workload, steps: int, rounds: int, seed: int) -> tuple:
    """Weights of the learned optimizer, and the losses on the way."""
    problem = BilevelProblem(
        lambda params, _, rows: work.loss(params, rows),
        lambda params, _, rows: work.loss(params, rows),
    )
    # Falling, as the noise of either derivative does not.
    falling = optax.cosine_decay_schedule(0.01, rounds)
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(falling))
    evolving = kind == "evolution"
    length = WINDOW if evolving else steps
    estimator: Any = (
        PersistentEvolution(
            LEARNED, WINDOW, horizon=TIMES * steps, pairs=16, sigma=0.02, stacked=True
        )
        if evolving
        else TruncatedUnrolled(LEARNED, steps, WINDOW, stacked=True)
    )

    def rows(key: jax.Array) -> tuple:
        return jax.vmap(lambda k: work.rows(k, BATCH))(jax.random.split(key, length))

    def one(carry: tuple, key: jax.Array) -> tuple:
        weights, moments, state = carry
        first, second, third, fourth = jax.random.split(key, 4)
        inner, judged = rows(first), work.rows(second, 8 * BATCH)
        if evolving:
            state = eqx.tree_at(lambda state: state.start, state, work.draw(fourth))
            state, _ = estimator.fit(problem, state, weights, inner, key=third)
        else:
            state = estimator.init(problem, work.draw(third), weights, inner)
        found = estimator.hypergradient(problem, state, weights, inner, judged)
        updates, moments = outer.update(found.grad, moments)
        return (optax.apply_updates(weights, updates), moments, state), found.value

    @jax.jit
    def run(key: jax.Array) -> tuple:
        a, b, c, d = jax.random.split(key, 4)
        weights = LEARNED.init(a)
        state = estimator.init(problem, work.draw(b), weights, rows(c))
        (weights, _, _), values = jax.lax.scan(
            one, (weights, outer.init(weights), state), jax.random.split(d, rounds)
        )
        return weights, values

    return run(jax.random.key(seed))


def training(work: Workload, rule: Parametrization, make: Callable, steps: int) -> Callable:
    """`losses(seed, *given)`: training losses of each step with the optimizer `make(*given)`."""

    def loss(params: list, rows: tuple) -> jax.Array:
        return work.loss(rule.forward(params), rows)

    @jax.jit
    def run(params: list, key: jax.Array, *given: Any) -> jax.Array:
        optimizer = rule.optimizer(make(*given))

        def step(carry: tuple, key: jax.Array) -> tuple:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, work.rows(key, BATCH))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[1]

    def losses(seed: int, *given: Any) -> jax.Array:
        key, rest = jax.random.split(jax.random.key(seed))
        return run(rule.init(work.draw(key), layers([196, NARROW, NARROW, 10])(key)), rest, *given)

    return losses


def adam(rate: jax.Array) -> optax.GradientTransformation:
    """With a rate that is traced."""
    return optax.adam(rate)


def last(losses: np.ndarray) -> float:
    """Mean over seeds and the last tenth of the steps."""
    found = losses[:, -max(1, losses.shape[1] // 10) :].mean()
    return float(found) if np.isfinite(found) else float("inf")


@experiment(
    paper="Thérien et al. 2024, arXiv:2406.00153; Vicol et al. 2021, arXiv:2112.13835",
    options=[
        Option("wide", 512, quick=128, help="width of the wide network"),
        Option("steps", 50, quick=20, help="of a short training"),
        Option("rounds", 400, quick=40, help="metagradients"),
        Option("truncation", True, help="learn by truncation as well"),
        Option("seeds", 3, quick=1, help="trainings with each optimizer"),
    ],
    claims=[
        Claim("rule", "loss of the wide network, with the rule / without", at_most=0.9, quick=1.1),
        Claim(
            "learns",
            "loss, learned by evolution / Adam where learning began, narrow",
            at_most=0.95,
            quick=1.0,
        ),
        Claim(
            "unbiased",
            "loss, by evolution / by truncation, narrow",
            at_most=1.0,
            quick=1.5,
            when=lambda options: options.truncation,
        ),
        Claim(
            "adam", "loss, learned / Adam with the grid's best rate, wide", at_most=1.1, quick=1.5
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Learn on a narrow network, use on a wide one."""
    options = context.options
    narrow, wide = network(NARROW), network(options.wide)
    same, rule = rule_at(NARROW), rule_at(options.wide)
    plain = rule_at(options.wide, "standard")
    weights, curves = {}, {}
    with context.progress("steps of the experiment", total=8) as bar:
        for kind in ("evolution", "truncation")[: 1 + options.truncation]:
            weights[kind], curves[kind] = meta_trained(
                kind, narrow, options.steps, options.rounds, options.seed
            )
            bar.advance()

        def losses(run: Callable, *given: Any) -> np.ndarray:
            return np.array([run(100 + n, *given) for n in range(options.seeds)])

        steps = TIMES * options.steps
        run = training(narrow, same, adam, steps)
        grid = {rate: last(losses(run, jnp.float32(rate))) for rate in RATES.tolist()}
        best = min(grid, key=lambda rate: grid[rate])
        bar.advance()
        run = training(narrow, same, LEARNED, steps)
        first = {kind: last(losses(run, found)) for kind, found in weights.items()}
        first["adam"] = grid[RATE]
        bar.advance()
        found = weights[min(weights, key=lambda kind: first[kind])]
        run = training(wide, rule, adam, steps)
        ends = {
            "learned, with the rule": losses(training(wide, rule, LEARNED, steps), found),
            "learned, without": losses(training(wide, plain, LEARNED, steps), found),
            "adam, where learning began": losses(run, jnp.float32(RATE)),
            "adam, best rate of the narrow network": losses(run, jnp.float32(best)),
        }
        bar.advance(4)
    context.table(
        "loss after a whole training",
        [{"optimizer": name, "width": options.wide, "loss": last(v)} for name, v in ends.items()]
        + [
            {"optimizer": f"learned by {n}" if n in weights else n, "width": NARROW, "loss": v}
            for n, v in first.items()
        ]
        + [{"optimizer": "adam, best rate", "width": NARROW, "loss": grid[best]}],
    )
    context.plot(
        "wide",
        {name: Curve(np.arange(v.shape[1]), v.mean(0)) for name, v in ends.items()},
        x="training steps",
        y="training loss",
        y_scale="log",
    )
    context.plot(
        "learning",
        {name: Curve(np.arange(len(v)), np.asarray(v)) for name, v in curves.items()},
        x="metagradients",
        y="loss that they are of",
        y_scale="log",
    )
    context.measure("rule", last(ends["learned, with the rule"]) / last(ends["learned, without"]))
    context.measure("learns", first["evolution"] / first["adam"])
    if options.truncation:
        context.measure("unbiased", first["evolution"] / first["truncation"])
    context.measure(
        "adam",
        last(ends["learned, with the rule"]) / last(ends["adam, best rate of the narrow network"]),
    )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
