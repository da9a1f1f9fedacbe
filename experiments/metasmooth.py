"""What makes a training metasmooth: normalisation, width, the number under Adam's root, a warm-up.

A network with one hidden layer of rectified units learns digits by Adam at a high learning rate, in
a fixed order of mini-batches. The hyperparameters are the weights of its examples. For each of
several changes of the training, one at a time and all together: the metasmoothness over steps of a
fifth of a weight, and the agreement of the metagradient with the changes of the validation loss.

Engstrom et al. 2025, section 3, who find the same remedies on larger networks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import tabular
from experiments.harness import COLOURS, Claim, Context, Option, experiment
from hypergrad import BilevelProblem, metasmoothness
from hypergrad.unrolled import StepFunction, Unrolled, grad

CLASSES, BATCH = 10, 50
# Of the training as it is.
WIDTH = 16
# Of an example's weight, which is one.
STEP = 0.2


class Change(NamedTuple):
    """Of the training."""

    normalised: bool = False
    width: int = WIDTH
    under_root: float = 1e-16
    warm_up: float = 0.0


BASE, WIDE = "as it is", "sixteen times as wide, by muP"
REST, ALL = "all but the width", "all four"
CHANGES = {
    BASE: Change(),
    "0.01 under the root": Change(under_root=0.01),
    "warm-up over half the steps": Change(warm_up=0.5),
    "batch norm": Change(normalised=True),
    WIDE: Change(width=256),
    REST: Change(True, WIDTH, 0.01, 0.5),
    ALL: Change(True, 256, 0.01, 0.5),
}


def initial(width: int, seed: int) -> dict:
    """Two layers."""
    rng = np.random.default_rng(seed)
    return {
        "in": jnp.asarray(rng.normal(size=(64, width)) / 8, jnp.float32),
        "out": jnp.asarray(rng.normal(size=(width, CLASSES)) / width**0.5, jnp.float32),
    }


def losses(params: dict, x: jax.Array, y: jax.Array, normalised: jax.Array) -> jax.Array:
    """One for each example; the batch is normalised before the rectifier where that is asked."""
    hidden = x @ params["in"]
    mean, deviation = jnp.mean(hidden, axis=0), jnp.std(hidden, axis=0)
    normal = (hidden - mean) / jnp.sqrt(deviation**2 + 1e-5)
    hidden = jax.nn.relu(jnp.where(normalised, normal, hidden))
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["out"], y)


def inner(params: dict, hparams: jax.Array, batch: dict) -> jax.Array:
    """Of the mini-batch, weighted."""
    rows = batch["rows"]
    each = losses(params, batch["x"][rows], batch["y"][rows], batch["normalised"])
    return jnp.mean(hparams[rows] * each)


def outer(params: dict, hparams: jax.Array, batch: dict) -> jax.Array:
    """On the validation examples."""
    return jnp.mean(losses(params, batch["x"], batch["y"], batch["normalised"]))


PROBLEM = BilevelProblem(inner, outer)


def start(params: dict, hparams: jax.Array) -> tuple:
    """Both moments and the number of steps."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return zeros, zeros, jnp.zeros(())


def adam(params: dict, state: tuple, hparams: jax.Array, batch: dict) -> tuple[dict, tuple]:
    """A step whose rate and number under the root come with the batch."""
    first, second, count = state
    count = count + 1
    gradient = grad(inner)(params, hparams, batch)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)

    # By muP: what reads a hidden layer has a rate by its width.
    rates = {"in": batch["rate"], "out": batch["rate"] * WIDTH / params["out"].shape[0]}

    def moved(w: jax.Array, m: jax.Array, v: jax.Array, rate: jax.Array) -> jax.Array:
        root = jnp.sqrt(v / (1 - 0.999**count) + batch["under_root"])
        return w - rate * m / (1 - 0.9**count) / root

    return jax.tree.map(moved, params, first, second, rates), (first, second, count)


@experiment(
    paper="Engstrom et al. 2025, arXiv:2503.13751",
    compiles=True,
    options=[
        Option("train", 400, quick=100, help="training examples"),
        Option("steps", 120, quick=40, help="of a training"),
        Option("rate", 0.05, help="Adam's learning rate"),
        Option("directions", 8, quick=3, help="random directions"),
    ],
    claims=[
        Claim(
            "each",
            "least gain by the number under the root, warm-up, or batch norm alone",
            at_least=0.0,
        ),
        Claim("all", "metasmoothness with all four", at_least=0.9, quick=0.7),
        Claim("width", "gain by width on top of the others", at_least=0.0, quick=-0.1),
    ],
)
def run_experiment(context: Context) -> None:
    """Change one thing at a time."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    data = tabular("digits", seed=options.seed)
    x, y = jnp.asarray(data.train.x / 16, jnp.float32), jnp.asarray(data.train.y)
    rows = jnp.asarray(rng.integers(0, options.train, size=(options.steps, BATCH)))
    at = (np.arange(options.steps) + 1) / options.steps
    estimator = Unrolled(StepFunction(adam, start), options.steps, stacked=True)
    found = {}
    with context.progress("trainings", total=len(CHANGES)) as bar:
        for name, change in CHANGES.items():
            up = np.minimum(1, at / change.warm_up) if change.warm_up else np.ones(options.steps)
            over = lambda value: jnp.broadcast_to(value, (options.steps, *np.shape(value)))  # noqa: E731
            settings = {
                "x": over(x[: options.train]),
                "y": over(y[: options.train]),
                "rows": rows,
                "normalised": over(change.normalised),
                "under_root": over(jnp.float32(change.under_root)),
                "rate": jnp.asarray(options.rate * up, jnp.float32),
            }
            judged = {
                "x": jnp.asarray(data.validation.x / 16, jnp.float32),
                "y": jnp.asarray(data.validation.y),
                "normalised": jnp.asarray(change.normalised),
            }
            found[name] = metasmoothness(
                PROBLEM,
                initial(change.width, options.seed),
                jnp.ones(options.train),
                settings,
                judged,
                estimator=estimator,
                step=STEP,
                directions=options.directions,
            )
            bar.advance(incumbent=found[name].value)
    context.table(
        "metasmoothness",
        [
            {
                "training": name,
                "metasmoothness": m.value,
                "its error": m.error,
                "agreement": m.agreement,
                "error of the agreement": m.agreement_error,
            }
            for name, m in found.items()
        ],
    )
    with context.figure("metasmoothness", width=6, height=2.8) as figure:
        axes = figure.subplots()
        axes.barh(
            list(found),
            [m.value for m in found.values()],
            xerr=[m.error for m in found.values()],
            color=COLOURS[0],
        )
        axes.invert_yaxis()
        axes.set(xlabel="metasmoothness", xlim=(min(0, *(m.value for m in found.values())), 1))
    alone = [m.value for name, m in found.items() if name not in (BASE, WIDE, REST, ALL)]
    context.measure("each", min(alone) - found[BASE].value)
    context.measure("all", found[ALL].value)
    context.measure("width", found[ALL].value - found[REST].value)


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
