"""How much of each kind of text to train on, learned during one training of a small language model.

Six domains of text that every Python brings; the target is two of them, unseen pieces. A byte-level
model is trained once while the derivative of the target's loss in the six weights is carried along
(forward mode), which moves the weights on the simplex; once more with `F2SA`, which needs first
derivatives only. The weights' mean over the run is then trained with from the start, as are uniform
weights, weights by the domains' sizes, the target's two domains alone, and the best of a few random
mixtures on the target's validation pieces.

All final trainings have the same steps and start. The table has bits per byte of the target's test
pieces, over several seeds. The model has 29 thousand parameters. DoReMi and TPE are not among the
rivals.

Pan et al. 2024 (*ScaleBiO*) weigh sources by a first-order bilevel method; Franceschi et al. 2017
for forward mode along a training.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.byte_model import bits_per_byte, initial, loss
from experiments.data.text import Domain, text_domains
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.data import mixture
from hypergrad.outer import F2SA, Alternating
from hypergrad.unrolled import OnlineUnrolled

PROBLEM = BilevelProblem(loss, loss)
TARGETS = ("manual", "documentation")
LENGTH, RATE = 32, 0.01
# Training steps between two steps of the weights.
BETWEEN = 5
ONLINE, FIRST_ORDER = "learned, forward mode", "learned, F2SA"
LAST = "learned, forward mode, the last weights"


def adam() -> optax.GradientTransformation:
    """Of the model."""
    return optax.adam(RATE, eps_root=1e-8)


def both(domains: dict[str, Domain], part: str, each: int) -> np.ndarray:
    """Pieces of the target: equally many of its two domains."""
    return np.concatenate([getattr(domains[name], part)[:each] for name in TARGETS])


@experiment(
    paper="Pan et al. 2024 (ScaleBiO), arXiv:2406.19976",
    options=[
        Option("steps", 300, quick=40, help="training steps"),
        Option("batch", 16, quick=8, help="pieces in a mini-batch"),
        Option("seeds", 3, quick=1, help="runs"),
        Option("random", 6, quick=2, help="random mixtures tried"),
        Option("held", 512, quick=128, help="validation pieces, and as many for the test"),
    ],
    claims=[
        Claim(
            "below_uniform",
            "median bits per byte below uniform weights, forward mode",
            at_least=0.0,
        ),
        Claim(
            "below_random",
            "median bits per byte below the best random mixture, forward mode",
            at_least=0.0,
            quick=-0.1,
        ),
        Claim("on_target", "mean weight on the target's domains at the end", at_least=1 / 3),
    ],
)
def run_experiment(context: Context) -> None:
    """Learn the weights, train with them, compare."""
    options = context.options
    domains = text_domains(LENGTH, seed=options.seed)
    names = list(domains)
    data = {name: jnp.asarray(part.train) for name, part in domains.items()}
    each = options.held // len(TARGETS)
    validation, test = (jnp.asarray(both(domains, part, each)) for part in ("validation", "test"))
    sizes = np.array([len(part) for part in data.values()])
    first = jnp.asarray(np.cumsum([0, *sizes])[:-1])
    together, count = jnp.concatenate(list(data.values())), jnp.asarray(sizes)
    optimizer = adam()

    @jax.jit
    def train(weights: jax.Array, params: dict, key: jax.Array) -> dict:
        """Mini-batches whose pieces come from the domains with these probabilities."""

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            w, state = carry
            which, row = jax.random.split(key)
            domain = jax.random.categorical(
                which, jnp.log(weights), shape=(options.batch * len(names),)
            )
            uniform = jax.random.uniform(row, domain.shape)
            rows = first[domain] + jnp.floor(uniform * count[domain]).astype(jnp.int32)
            gradient = jax.grad(loss)(w, None, together[rows])
            updates, state = optimizer.update(gradient, state, w)
            return (optax.apply_updates(w, updates), state), None

        keys = jax.random.split(key, options.steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    algorithms = {
        ONLINE: Alternating(OnlineUnrolled(optimizer, 1), optax.adam(0.1), fits=BETWEEN),
        FIRST_ORDER: F2SA(
            optax.adam(0.1), inner_steps=BETWEEN, step_size=0.5, multiplier=3.0, most=10.0
        ),
    }
    if options.quick:
        del algorithms[FIRST_ORDER]
    outer_steps = options.steps // BETWEEN
    bits: dict[str, list[float]] = {}
    weights_of: dict[str, list[np.ndarray]] = {}
    traces = []
    with context.progress("runs", total=options.seeds) as bar:
        for seed in range(options.seed, options.seed + options.seeds):
            params, key = initial(seed), jax.random.key(seed)
            found: dict[str, np.ndarray] = {
                "uniform": np.full(len(names), 1 / len(names)),
                "proportional to size": sizes / sizes.sum(),
                "target's domains only": np.array([name in TARGETS for name in names]) / 2,
            }
            for name, algorithm in algorithms.items():
                out = mixture(
                    PROBLEM,
                    params,
                    None,
                    data,
                    validation,
                    algorithm=algorithm,
                    steps=outer_steps,
                    batch=options.batch,
                    target_batch=4 * options.batch,
                    seed=seed,
                )
                found[name] = _vector(out.average, names)
                if name == ONLINE:
                    found[LAST] = _vector(out.weights, names)
                    traces.append(out.trace)
            rng = np.random.default_rng(seed)
            tried = rng.dirichlet(np.ones(len(names)), size=options.random)
            scores = [bits_per_byte(train(jnp.asarray(p), params, key), validation) for p in tried]
            found[f"best of {options.random} random"] = tried[int(np.argmin(scores))]
            for name, p in found.items():
                end = train(jnp.asarray(p), params, key)
                bits.setdefault(name, []).append(bits_per_byte(end, test))
                weights_of.setdefault(name, []).append(p)
            bar.advance(incumbent=min(b[-1] for b in bits.values()))

    median = {name: float(np.median(values)) for name, values in bits.items()}
    context.table(
        "bits per byte of the target",
        [
            {"mixture": name, "median": median[name], "best": min(b), "worst": max(b)}
            for name, b in bits.items()
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
    context.measure("below_uniform", median["uniform"] - median[ONLINE])
    context.measure("below_random", median[f"best of {options.random} random"] - median[ONLINE])
    on_target = [names.index(name) for name in TARGETS]
    context.measure("on_target", float(trace[-1, on_target].sum()))


def _vector(weights: Mapping[str, float], names: list[str]) -> np.ndarray:
    return np.array([weights[name] for name in names])


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
