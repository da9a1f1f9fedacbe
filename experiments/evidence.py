"""Evidence instead of validation data: prior precisions from the training images alone.

A small network classifies handwritten digits. The precision of its prior is chosen from a grid by
the Laplace evidence, beside choices by validation images that the evidence does without. Then four
precisions, of the weights and of the biases of both layers, are tuned by the evidence while the
network trains: with the exact log determinant, and with that of a random part of the data at a
time, which costs a fraction, counted in multiply-adds, but is the gradient of a bound that is
looser the smaller the part. Last, pictures of clothes: a network that averages over turned copies
of its input learns how far to turn them, from clothes that stand upright and from clothes that
were turned.

Immer, van der Ouderaa, van der Wilk, Rätsch and Schölkopf, "Stochastic Marginal Likelihood
Gradients using Neural Tangent Kernels" (ICML 2023). Networks and training sets are smaller here
than theirs.
"""

from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments.data import fashion_mnist
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import OptaxSolver
from hypergrad.evidence import EvidenceProblem, Exact, LaplaceEvidence, Linearised, Subsets
from hypergrad.outer import Alternating, run

CLASSES, PIXELS = 10, 64
#: Validation images of the grid, and of a poorer one.
MANY, FEW = 300, 50
#: Log precisions of the grid.
GRID = np.linspace(-4.0, 5.0, 15)
#: Steps with all data after which all are compared at equal cost.
COMPARED = (1, 3, 10)
#: Step of the hyperparameters, on the logarithm (the authors' first), and of the weights.
OUTER_RATE, RATE = 0.1, 0.01
#: Of the clothes: hidden units, outer steps before the hyperparameters move, training steps for
#: each, the share of the data in a step, and the angle, in radians, that the search begins with.
UNITS, BURN_IN, FOLLOWED, SHARE, ANGLE = 16, 20, 10, 10, 0.3
#: Turned copies that a prediction averages over, by shares of the angle.
COPIES = jnp.linspace(-1.0, 1.0, 7)


def predict(params: dict, hparams: dict, x: jax.Array) -> jax.Array:
    """Logits for one image."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def log_precision(hparams: dict, params: dict) -> dict:
    """One for each array of weights."""
    return {name: hparams[name] for name in params}


PROBLEM = EvidenceProblem(predict, "categorical", log_precision)


def start(key: jax.Array, inputs: int, hidden: int) -> tuple[dict, dict]:
    """Random weights, and a log precision of zero for each array of them."""
    first, second = jax.random.split(key)
    params = {
        "w1": jax.random.normal(first, (inputs, hidden)) / np.sqrt(inputs),
        "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(second, (hidden, CLASSES)) / np.sqrt(hidden),
        "b2": jnp.zeros(CLASSES),
    }
    return params, dict.fromkeys(params, jnp.zeros(()))


def data(seed: int, train: int) -> dict[str, tuple]:
    """Training, validation and test images; pixels from 0 to 1."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, [train, train + MANY])
    named = zip(("train", "validation", "test"), parts, strict=True)
    return {k: (jnp.asarray(x[p] / 16, jnp.float32), jnp.asarray(y[p])) for k, p in named}


def trained(params: dict, hparams: dict, batch: tuple, steps: int) -> dict:
    """The most probable weights."""
    solver = OptaxSolver(optax.adam(optax.cosine_decay_schedule(3 * RATE, steps)), steps)
    return solver.run(PROBLEM, params, hparams, batch).params


def multiply_adds(rows: int, weights: int) -> float:
    """Of one log determinant of so many rows, of the smaller matrix: Jacobian, matrix, factor."""
    size, other = min(rows, weights), max(rows, weights)
    return rows * weights + size**2 * other + size**3 / 3


def tuned(
    bound: Exact | Subsets,
    steps: int,
    context: Context,
    params: dict,
    hparams: dict,
    batch: tuple,
) -> list[dict]:
    """Log precisions after each step of Adam, the weights trained along."""
    seen: list[dict] = [hparams]
    solver = OptaxSolver(optax.adam(RATE), context.options.inner)
    run(
        PROBLEM,
        Alternating(LaplaceEvidence(solver, bound), optax.adam(OUTER_RATE)),
        params,
        hparams,
        batch,
        None,
        steps=steps,
        every=1,
        seed=context.options.seed,
        callbacks=[lambda at: seen.append(jax.tree.map(jnp.asarray, at.state.hparams))],
    )
    return seen


# Clothes, upright or turned


def turned(image: jax.Array, angle: jax.Array) -> jax.Array:
    """A picture turned about its middle, pixels in between by linear interpolation."""
    line = jnp.arange(len(image)) - (len(image) - 1) / 2
    row, column = jnp.meshgrid(line, line, indexing="ij")
    cosine, sine = jnp.cos(angle), jnp.sin(angle)

    def weights(at: jax.Array) -> jax.Array:
        return jax.nn.relu(1 - jnp.abs(at[..., None] - line))

    down, across = weights(cosine * row - sine * column), weights(sine * row + cosine * column)
    return jnp.einsum("rci,rcj,ij->rc", down, across, image)


def clothes(seed: int, count: int, edge: int, turn: bool) -> tuple[jax.Array, jax.Array]:
    """Pictures of so many pixels along an edge, each turned by a random angle if wanted."""
    train, _ = fashion_mnist()
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(train.y))[:count]
    pooled = train.x[chosen].reshape(count, edge, 28 // edge, edge, 28 // edge).mean(axis=(2, 4))
    x, angles = jnp.asarray(pooled / 255, jnp.float32), rng.uniform(-np.pi, np.pi, count)
    if turn:
        x = jax.jit(jax.vmap(turned))(x, jnp.asarray(angles, jnp.float32))
    return x, jnp.asarray(train.y[chosen].astype(int))


def averaged(params: dict, hparams: dict, x: jax.Array) -> jax.Array:
    """Logits, the mean over copies of a picture turned by shares of an angle, to both sides."""
    views = jax.vmap(lambda share: turned(x, share * hparams["angle"]))(COPIES)
    return jnp.mean(predict(params, hparams, views.reshape(len(COPIES), -1)), axis=0)


CLOTHES = EvidenceProblem(averaged, "categorical", log_precision)


def learned_turn(algorithm: Alternating, options: Namespace, turn: bool) -> Curve:
    """The largest angle of the copies, in degrees, after each step of the hyperparameters."""
    params, precisions = start(jax.random.key(options.seed), options.edge**2, UNITS)
    seen: list[tuple[int, float]] = []
    run(
        CLOTHES,
        algorithm,
        params,
        {**precisions, "angle": jnp.asarray(ANGLE)},
        clothes(options.seed, options.clothes, options.edge, turn),
        None,
        steps=BURN_IN + options.turns,
        every=5,
        seed=options.seed,
        callbacks=[lambda at: seen.append((at.step, abs(float(at.state.hparams["angle"]))))],
    )
    return Curve([step for step, _ in seen], np.degrees([angle for _, angle in seen]).tolist())


@experiment(
    paper="Immer et al. 2023, arXiv:2306.03968",
    compiles=True,
    options=[
        Option("train", 500, quick=100, help="training images of digits"),
        Option("hidden", 12, quick=6, help="hidden units"),
        Option("outer", 30, quick=15, help="hyperparameter steps with the exact determinant"),
        Option("inner", 20, quick=10, help="training steps for each of them"),
        Option("steps", 1000, quick=300, help="training steps where weights are trained anew"),
        Option("clothes", 500, quick=300, help="training images of clothes"),
        Option("edge", 14, quick=7, help="their pixels along an edge, a divisor of 28"),
        Option("turns", 50, quick=40, help="hyperparameter steps on the clothes"),
        Option("few", 10, quick=2, help="a step looks at one of so many images"),
        Option("more", 4, quick=2, help="another kind of step at one of so many"),
    ],
    claims=[
        Claim("grid", "evidence's choice from the grid: test loss, share", at_most=1.03, quick=1.2),
        Claim("few", "the same beside a choice by 50 validation images", at_most=1.0, quick=1.1),
        Claim("raised", "tuned by arrays: negative log evidence less than on the grid", at_least=0),
        Claim(
            "cost", "a tenth of the data: multiply-adds of a step, share", at_most=0.15, quick=0.6
        ),
        Claim(
            "reached",
            "a tenth of the data: largest distance of a log precision",
            at_most=0.5,
            quick=1.0,
        ),
        Claim(
            "excess",
            "a tenth, at the cost of 1, 3 and 10 steps: excess, share",
            at_most=1.0,
            quick=2.0,
        ),
        Claim(
            "more",
            "a quarter, at the cost of 1 and 3 steps: excess, share",
            at_most=1.0,
            quick=2.0,
        ),
        Claim("turned", "clothes turned at random: angle learned, degrees", at_least=90),
        Claim("upright", "clothes that stand upright: angle learned, degrees", at_most=45),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune by the evidence and by a grid."""
    options = context.options
    parts = data(options.seed, options.train)
    params, hparams = start(jax.random.key(options.seed), PIXELS, options.hidden)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    whole = multiply_adds(options.train * CLASSES, weights)
    sizes = {"few": options.train // options.few, "more": options.train // options.more}
    costs = {name: multiply_adds(n * CLASSES, weights) / whole for name, n in sizes.items()}
    context.measure("cost", costs["few"])

    @jax.jit
    def judged(hparams: dict) -> tuple[jax.Array, dict, dict]:
        """Exact negative log evidence of an image, losses, and weights, trained anew."""
        w = trained(params, hparams, parts["train"], options.steps)
        network = Linearised(PROBLEM.model, w, hparams, parts["train"])
        log_det = Exact().log_det(network, jnp.arange(options.train))
        fitted = PROBLEM.inner_loss(w, hparams, parts["train"])[0]
        losses = {name: PROBLEM.outer_loss(w, hparams, part)[0] for name, part in parts.items()}
        few = jax.tree.map(lambda leaf: leaf[:FEW], parts["validation"])
        losses["few"] = PROBLEM.outer_loss(w, hparams, few)[0]
        return (fitted + 0.5 * log_det) / options.train, losses, w

    paths: dict[str, list[dict]] = {}
    turns = {}
    with context.progress("runs", total=4 + len(sizes)) as bar:
        estimator = LaplaceEvidence(
            OptaxSolver(optax.adam(RATE), FOLLOWED),
            Subsets(options.clothes // SHARE, draws=1),
        )
        algorithm = Alternating(
            estimator, optax.adam(lambda step: jnp.where(step < BURN_IN, 0.0, OUTER_RATE))
        )
        for name, turn in (("turned", True), ("upright", False)):
            turns[name] = learned_turn(algorithm, options, turn)
            context.measure(name, turns[name].y[-1])
            bar.advance()
        grid = [judged(dict.fromkeys(params, jnp.asarray(p, jnp.float32))) for p in GRID]
        burnt = judged(hparams)[2]
        bar.advance()
        for name in ("all", *sizes):
            steps, bound = options.outer, Exact()
            if name in sizes:
                steps = round(COMPARED[-1] / costs[name])
                bound = Subsets(sizes[name], draws=1)
            paths[name] = tuned(bound, steps, context, burnt, hparams, parts["train"])
            bar.advance()

    ends = {name: judged(path[-1]) for name, path in paths.items()}
    away = {
        name: max(abs(float(paths["all"][-1][k] - path[-1][k])) for k in hparams)
        for name, path in paths.items()
    }
    context.measure("reached", away["few"])
    chosen = {
        "evidence": min(grid, key=lambda found: float(found[0])),
        "many": min(grid, key=lambda found: float(found[1]["validation"])),
        "few": min(grid, key=lambda found: float(found[1]["few"])),
    }
    tests = {name: float(found[1]["test"]) for name, found in chosen.items()}
    context.measure("grid", tests["evidence"] / tests["many"])
    context.measure("few", tests["evidence"] / tests["few"])
    context.measure("raised", float(chosen["evidence"][0] - ends["all"][0]))

    best = min(float(found[0]) for found in (*ends.values(), *grid))
    excess = []
    for step in COMPARED:
        row: dict[str, float | int] = {"steps with all data": step}
        row["all"] = float(judged(paths["all"][step])[0]) - best
        for name, price in costs.items():
            row[name] = float(judged(paths[name][round(step / price)])[0]) - best
        excess.append(row)
    context.measure("excess", max(row["few"] / row["all"] for row in excess))
    context.measure("more", max(row["more"] / row["all"] for row in excess[:2]))

    labels = {
        "grid, by the evidence": chosen["evidence"],
        f"grid, by {MANY} validation images": chosen["many"],
        f"grid, by {FEW} validation images": chosen["few"],
        **{f"by arrays, evidence of {name}": found for name, found in ends.items()},
    }
    context.table(
        "chosen by",
        [
            {
                "chosen": label,
                "negative log evidence": float(found[0]),
                "test loss": float(found[1]["test"]),
            }
            for label, found in labels.items()
        ],
    )
    context.table("excess of the negative log evidence at equal cost", excess)
    context.plot(
        "grid",
        {
            "negative log evidence": Curve(GRID.tolist(), [float(found[0]) for found in grid]),
            "test loss": Curve(GRID.tolist(), [float(found[1]["test"]) for found in grid]),
        },
        x="log precision of both layers",
        y="nats for an image",
    )
    context.plot("turned", turns, x="hyperparameter steps", y="largest angle, degrees")
    context.say(
        "Largest distance of a log precision from that of the exact evidence: "
        + ", ".join(f"{name} {away[name]:.2g}" for name in sizes)
        + ". A bound from few images prefers tighter priors."
    )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
