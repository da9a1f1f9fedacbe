"""How much of each kind of text to train on, learned during one training of a language model.

Eight domains of text that every Python brings; the target is two of them, unseen pieces (with
`--scarce 150` there are few of them to train on, so that their domains alone are not best). A small
byte-level model is trained once while the weights of the domains move on the simplex: by the
derivative of the target's loss through the last step alone, by `F2SA`, which needs first
derivatives only, and, with `--ways 3`, by that carried along the training (forward mode, the cost
of twenty trainings). What is trained with from the start is the mean of the weights over the second
half of that run, and those at its end.

Beside them: equal weights, weights by the domains' sizes, DoReMi's rule (which knows of no target),
the target's two domains alone (which a person who knows them would take), and TPE on eight shares:
fifty trials, shortened so that together they cost what the first way does, judged by the same
validation pieces. All final trainings have the same steps and start; the table has bits per byte of
the target's test pieces, over several seeds. The model has 1.15 million parameters.

Mixtures are used as they are learned, as weights of losses on equally many pieces of each domain,
and as shares in which pieces are drawn; TPE is run once for either. That is not the same: Adam
undoes the scale of a gradient, so that a domain of small weight teaches what it alone tells at full
speed, and takes no pieces from the others.

Pan et al. 2024 (*ScaleBiO*) weigh sources by a first-order bilevel method; Fan et al. 2023 (*DoGE*)
by the derivative through a step; Franceschi et al. 2017 for forward mode along a training; Xie et
al. 2023 for DoReMi.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.byte_model import bits_per_byte, initial, loss
from experiments.data.mixing import doremi, joined, optimizer_of, train
from experiments.data.text import Domain, text_domains
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import optuna_search
from hypergrad import BilevelProblem
from hypergrad.data import mixture
from hypergrad.outer import F2SA, Alternating, OuterAlgorithm
from hypergrad.unrolled import OnlineUnrolled, TruncatedUnrolled
from strategies.space import Float, SearchSpace

PROBLEM = BilevelProblem(loss, loss)
TARGETS = ("manual", "documentation")
LENGTH, RATE = 32, 0.01
# Training steps between two steps of the weights, and how far these go.
BETWEEN, WEIGHTS_RATE = 5, 0.3
LAST_STEP, FIRST_ORDER, FORWARD = (
    "learned, through the last step",
    "learned, F2SA",
    "learned, forward mode",
)
UNIFORM, SIZES, DOREMI = "uniform", "proportional to size", "DoReMi's rule"
TPE, TARGET = "TPE, equal compute", "target's domains only"
TRIALS = 50
#: Ways to use a mixture, and whether the domains of pieces are drawn with these probabilities.
WEIGHTS, SHARES = "as weights of losses", "as shares of the pieces"
USES = {WEIGHTS: False, SHARES: True}


def algorithms(steps: int) -> dict[str, tuple[OuterAlgorithm, int]]:
    """How the weights are moved, and outer steps of a training of so many steps."""
    optimizer, weights = optimizer_of(RATE), optax.adam(WEIGHTS_RATE)
    one = TruncatedUnrolled(optimizer, 1, window=1, warm_start=True)
    first = F2SA(weights, inner_steps=BETWEEN, step_size=0.5, multiplier=3.0, most=10.0)
    moved = {
        LAST_STEP: Alternating(one, weights, fits=BETWEEN),
        FIRST_ORDER: first,
        FORWARD: Alternating(OnlineUnrolled(optimizer, 1), weights, fits=BETWEEN),
    }
    return {name: (algorithm, steps // BETWEEN) for name, algorithm in moved.items()}


def both(domains: dict[str, Domain], part: str, each: int) -> np.ndarray:
    """Pieces of the target: equally many of its two domains."""
    return np.concatenate([getattr(domains[name], part)[:each] for name in TARGETS])


@experiment(
    paper="Pan et al. 2024 (ScaleBiO), arXiv:2406.19976",
    compiles=True,
    options=[
        Option("steps", 300, quick=40, help="training steps"),
        Option("batch", 4, help="pieces of each domain in a mini-batch"),
        Option("seeds", 3, quick=1, help="runs"),
        Option("embedding", 16, quick=2, help="numbers for a byte, and for a pair"),
        Option("hidden", 256, quick=64, help="units"),
        Option("held", 512, quick=128, help="validation pieces, and as many for the test"),
        Option("scarce", 0, help="training pieces of each of the target's domains; 0: all"),
        Option("ways", 2, quick=1, help="the first so many ways to move the weights"),
        Option("cost", 5.0, help="trainings that the first way costs, for TPE"),
    ],
    claims=[
        Claim(
            f"below_{short}",
            f"median bits per byte of the learned weights below {name}",
            at_least=0.0,
            quick=-0.3,
        )
        for short, name in (
            ("uniform", UNIFORM),
            ("sizes", SIZES),
            ("doremi", DOREMI),
            ("tpe", TPE),
        )
    ]
    + [
        Claim(
            "below_tpe_shares",
            "the last, where pieces are drawn in the learned shares, and TPE's trials draw them",
            at_least=0.0,
            quick=-0.3,
        ),
        Claim(
            "on_target", "mean weight on the target's domains at the end", at_least=0.5, quick=0.25
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Learn the weights, train with them, compare."""
    options = context.options
    domains = text_domains(LENGTH, seed=options.seed)
    names = list(domains)
    few = {name: options.scarce if name in TARGETS and options.scarce else None for name in names}
    data = {name: jnp.asarray(part.train[: few[name]]) for name, part in domains.items()}
    each = options.held // len(TARGETS)
    validation, test = (jnp.asarray(both(domains, part, each)) for part in ("validation", "test"))
    together = joined(list(data.values()))
    sizes = np.array([len(part) for part in data.values()])
    ways = dict(list(algorithms(options.steps).items())[: options.ways])
    # Shares up to their sum: TPE knows no simplex.
    space = SearchSpace({name: Float(1e-3, 1.0, log=True) for name in names})
    short = max(1, round(options.cost * options.steps / TRIALS))
    trials = TRIALS if not options.quick else 10
    bits: dict[str, dict[str, list[float]]] = {use: {} for use in USES}
    weights_of: dict[str, list[np.ndarray]] = {}
    traces = []
    with context.progress("runs", total=options.seeds) as bar:
        for seed in range(options.seed, options.seed + options.seeds):
            params = initial(seed, embedding=options.embedding, hidden=options.hidden)
            key = jax.random.key(seed)

            def trained(weights: np.ndarray, steps: int, *, drawn: bool = False) -> dict:
                return train(
                    together,
                    weights,
                    params,  # noqa: B023
                    steps,
                    each=options.batch,
                    rate=RATE,
                    key=key,  # noqa: B023
                    drawn=drawn,
                )

            found: dict[str, np.ndarray] = {
                UNIFORM: np.full(len(names), 1 / len(names)),
                SIZES: sizes / sizes.sum(),
                TARGET: np.array([name in TARGETS for name in names]) / len(TARGETS),
            }
            found[DOREMI] = doremi(
                together,
                trained(found[UNIFORM], options.steps),
                params,
                options.steps,
                each=options.batch,
                rate=RATE,
                key=key,
            )
            for name, (algorithm, steps) in ways.items():
                out = mixture(
                    PROBLEM,
                    params,
                    None,
                    data,
                    validation,
                    algorithm=algorithm,
                    steps=steps,
                    batch=options.batch,
                    target_batch=16 * options.batch,
                    seed=seed,
                )
                found[name] = np.mean(out.trace[len(out.trace) // 2 :], axis=0)
                found[f"{name}: its last weights"] = _vector(out.weights, names)
                if name == LAST_STEP:
                    traces.append(out.trace)
                    bits[WEIGHTS].setdefault("the run of the first way itself", []).append(
                        bits_per_byte(out.params, test)
                    )
            for use, drawn in USES.items():
                tried: list[tuple[float, np.ndarray]] = []

                def objective(config: dict) -> float:
                    weights = _vector(config, names)
                    weights = weights / weights.sum()
                    end = trained(weights, short, drawn=drawn)  # noqa: B023
                    tried.append((bits_per_byte(end, validation), weights))  # noqa: B023
                    return tried[-1][0]  # noqa: B023

                optuna_search("TPE", space, objective, trials, seed=seed)
                best = min(tried, key=lambda pair: pair[0])[1]
                for name, p in {**found, TPE: best}.items():
                    end = trained(p, options.steps, drawn=drawn)
                    bits[use].setdefault(name, []).append(bits_per_byte(end, test))
                    if not drawn:
                        weights_of.setdefault(name, []).append(p)
            bar.advance(incumbent=min(b[-1] for b in bits[WEIGHTS].values()))

    median = {
        use: {name: float(np.median(values)) for name, values in of_use.items()}
        for use, of_use in bits.items()
    }
    context.table(
        "bits per byte of the target",
        [
            {
                "mixture": name,
                "median": median[WEIGHTS][name],
                "best": min(b),
                "worst": max(b),
                SHARES: median[SHARES].get(name),
            }
            for name, b in bits[WEIGHTS].items()
        ],
    )
    context.table(
        "weights",
        [
            {"mixture": name, **dict(zip(names, np.mean(p, axis=0).tolist(), strict=True))}
            for name, p in weights_of.items()
        ],
    )
    trace = np.mean(traces, axis=0)
    context.plot(
        "weights during the training",
        {
            name: Curve(BETWEEN * np.arange(1, len(trace) + 1), trace[:, d])
            for d, name in enumerate(names)
        },
        x="training steps",
        y="weight",
    )
    for short_name, name in (
        ("uniform", UNIFORM),
        ("sizes", SIZES),
        ("doremi", DOREMI),
        ("tpe", TPE),
    ):
        context.measure(f"below_{short_name}", median[WEIGHTS][name] - median[WEIGHTS][LAST_STEP])
    context.measure("below_tpe_shares", median[SHARES][TPE] - median[SHARES][LAST_STEP])
    on_target = [names.index(name) for name in TARGETS]
    context.measure("on_target", float(trace[-1, on_target].sum()))


def _vector(weights: Mapping[str, float], names: list[str]) -> np.ndarray:
    return np.array([weights[name] for name in names])


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
