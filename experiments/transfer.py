"""The best learning rate of a small network used for a wide one, with and without muP.

A network with two hidden layers learns digits with Adam, at several widths and learning rates an
octave apart. In the usual initialisation the best rate falls as the network gets wider; under muP,
whose rules are inferred from the shapes, it stays, and the rate of the smallest width can be used.

Yang et al., "Tensor Programs V" (2022).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.transfer import infer
from hypergrad.transfer.rules import Kind

#: Learning rates, powers of two. A best one at either end has not been bracketed.
OCTAVES = np.arange(-11.0, -1.0)
SMALLEST = 32
KINDS: tuple[Kind, ...] = ("standard", "mup")
CLASSES = 10
BATCH = 128


def draw(width: int, key: jax.Array) -> list[dict[str, jax.Array]]:
    """Values of size 1/√fan-in, biases zero."""
    sizes = [(64, width), (width, width), (width, CLASSES)]
    return [
        {"w": jax.random.normal(k, s) / jnp.sqrt(s[0]), "b": jnp.zeros(s[1])}
        for k, s in zip(jax.random.split(key, 3), sizes, strict=True)
    ]


def loss(params: list[dict[str, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of the labels."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def trained(kind: Kind, base: int, width: int, steps: int, seeds: int, seed: int) -> np.ndarray:
    """Training loss at the end for each rate, mean over seeds."""
    digits = load_digits()
    x = jnp.asarray(digits.data / 16 - digits.data.mean() / 16, jnp.float32)
    y = jnp.asarray(digits.target)
    shapes = [jax.eval_shape(partial(draw, w), jax.random.key(0)) for w in (base, 2 * base)]
    rule = infer(*shapes, kind=kind).at(jax.eval_shape(partial(draw, width), jax.random.key(0)))

    def run(octave: jax.Array, params: list, key: jax.Array) -> jax.Array:
        optimizer = rule.optimizer(optax.adam(2.0**octave))

        def step(carry: tuple, key: jax.Array) -> tuple:
            params, state = carry
            pick = jax.random.randint(key, (BATCH,), 0, len(y))
            grads = jax.grad(lambda p: loss(rule.forward(p), x[pick], y[pick]))(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return loss(rule.forward(params), x, y)

    over = jax.jit(jax.vmap(run, (0, None, None)))
    found = []
    for each in range(seeds):
        key = jax.random.fold_in(jax.random.key(seed), each)
        params = rule.init(draw(width, key), draw(base, key))
        found.append(over(jnp.asarray(OCTAVES, jnp.float32), params, key))
    # A training that has blown up is worse than any other.
    return np.nan_to_num(np.mean(found, 0), nan=np.inf)


@experiment(
    paper="Yang et al. 2022, arXiv:2203.03466",
    options=[
        Option("steps", 100, quick=40, help="steps of Adam"),
        Option("doublings", 1, quick=3, help="from one width to the next"),
        Option("largest", 512, quick=256, help="width of the largest network"),
        Option("seeds", 3, quick=1, help="draws and orders of the data"),
    ],
    claims=[
        Claim("mup", "octaves that the best rate moves with muP", at_most=1),
        Claim("standard", "octaves that it moves without", at_least=2, quick=1),
        Claim("bracketed", "best rates inside the grid, share", at_least=1.0),
    ],
)
def run_experiment(context: Context) -> None:
    """Every width at every rate, under both rules."""
    options = context.options
    factor = 2**options.doublings
    widths = [SMALLEST]
    while widths[-1] * factor <= options.largest:
        widths.append(widths[-1] * factor)
    rows, curves, inside = [], {}, []
    with context.progress("trainings", total=2 * len(widths)) as bar:
        for kind in KINDS:
            best = []
            for width in widths:
                found = trained(kind, SMALLEST, width, options.steps, options.seeds, options.seed)
                at = int(found.argmin())
                inside.append(0 < at < len(OCTAVES) - 1)
                best.append(OCTAVES[at])
                carried = found[list(OCTAVES).index(best[0])]
                rows.append(
                    {
                        "rule": kind,
                        "width": width,
                        "best rate, log2": float(OCTAVES[at]),
                        "loss there": float(found[at]),
                        f"loss at the rate of width {SMALLEST}": float(carried),
                    }
                )
                curves[f"{kind}, {width}"] = Curve(OCTAVES.tolist(), found.tolist())
                bar.advance()
            context.measure(kind, float(abs(best[-1] - best[0])))
    context.measure("bracketed", float(np.mean(inside)))
    context.table("best rates", rows)
    context.plot("rates", curves, x="log2 learning rate", y="training loss")


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
