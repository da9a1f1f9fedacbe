"""Trainings whose hypergradients `benchmarks.unroll_memory` weighs: by model, and by derivative.

Each is Adam on the mean of the examples' losses, each with a weight, and a penalty for each tensor;
the hyperparameters are the learning rate, these weights, and the logarithms of the penalties.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from benchmarks.transformer import Size, initial, logits, sequence_losses
from hypergrad import BilevelProblem
from hypergrad.linear.vector import widen
from hypergrad.unrolled import CheckpointSchedule, StepFunction, Unrolled

#: How the training gradient is differentiated; the last also runs the model's blocks again.
WAYS = REFERENCE, FORWARD, AGAIN = (
    "reverse over reverse",
    "forward over reverse",
    "forward over reverse, blocks again",
)
RATE, PENALTY, UNDER_ROOT = 1e-3, 1e-4, 1e-8


class Model(NamedTuple):
    """`losses(params, batch, again)` has one loss for each example.

    With `again` a backward pass runs each block again, and stores what enters it only.
    """

    losses: Callable[[PyTree, PyTree, bool], Array]
    params: PyTree
    batch: PyTree


def transformer(layers: int) -> Model:
    """Width 64, eight sequences of 64 tokens of a vocabulary of 256."""
    size = Size(layers, 64, vocabulary=256, sequences=8, length=64)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, size.vocabulary, (size.sequences, size.length + 1)))

    def losses(params: PyTree, tokens: Array, again: bool) -> Array:
        return sequence_losses(logits(params, tokens[:, :-1], again), tokens)

    return Model(losses, widen(initial(size, rng)), tokens)


def convolutions(layers: int) -> Model:
    """Residual convolutions of 8 channels on 16 pictures of 16 x 16, ten classes."""
    rng = np.random.default_rng(0)
    channels, classes = 8, 10

    def normal(*shape: int, inputs: int) -> Array:
        return jnp.asarray(rng.normal(size=shape) / inputs**0.5, jnp.float32)

    params = {
        "in": normal(1, channels, inputs=1),
        "blocks": normal(layers, 3, 3, channels, channels, inputs=9 * channels),
        "out": normal(channels, classes, inputs=channels),
    }
    batch = (normal(16, 16, 16, 1, inputs=1), jnp.asarray(rng.integers(0, classes, 16)))

    def block(h: Array, kernel: Array) -> tuple[Array, None]:
        moved = jax.lax.conv_general_dilated(
            h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return h + jax.nn.gelu(moved), None

    def losses(params: PyTree, batch: tuple, again: bool) -> Array:
        x, y = batch
        body = jax.checkpoint(block) if again else block
        h, _ = jax.lax.scan(body, x @ params["in"], params["blocks"])
        scores = h.mean((1, 2)) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, y)

    return Model(losses, params, batch)


def lstm(length: int) -> Model:
    """64 units on 16 sequences of 8 numbers; the blocks are the steps in time."""
    rng = np.random.default_rng(0)
    units, inputs, classes = 64, 8, 10

    def normal(*shape: int, inputs: int) -> Array:
        return jnp.asarray(rng.normal(size=shape) / inputs**0.5, jnp.float32)

    params = {
        "cell": normal(inputs + units, 4 * units, inputs=inputs + units),
        "bias": jnp.zeros(4 * units, jnp.float32),
        "out": normal(units, classes, inputs=units),
    }
    batch = (normal(16, length, inputs, inputs=1), jnp.asarray(rng.integers(0, classes, 16)))

    def losses(params: PyTree, batch: tuple, again: bool) -> Array:
        x, y = batch

        def cell(carry: tuple, at: Array) -> tuple[tuple, None]:
            h, c = carry
            gates = jnp.concatenate([at, h], axis=-1) @ params["cell"] + params["bias"]
            let_in, keep, let_out, new = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(keep) * c + jax.nn.sigmoid(let_in) * jnp.tanh(new)
            return (jax.nn.sigmoid(let_out) * jnp.tanh(c), c), None

        nothing = jnp.zeros((len(y), units), x.dtype)
        body = jax.checkpoint(cell) if again else cell
        (h, _), _ = jax.lax.scan(body, (nothing, nothing), jnp.swapaxes(x, 0, 1))
        scores = h @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, y)

    return Model(losses, params, batch)


def hypergradient(
    model: Model, way: str, steps: int, memory: int | None
) -> tuple[Callable, tuple, CheckpointSchedule]:
    """A function, its arguments, and what it is going to do.

    **Arguments:**

    - `way`: one of `WAYS`.
    - `steps`: of Adam.
    - `memory`: see `Unrolled`.
    """

    def weighted(p: PyTree, h: PyTree, batch: PyTree) -> Array:
        squares = jax.tree.map(lambda s, w: jnp.exp(s) * jnp.sum(w**2), h["penalties"], p)
        losses = model.losses(p, batch, way == AGAIN)
        return jnp.mean(jnp.exp(h["weights"]) * losses) + PENALTY * sum(jax.tree.leaves(squares))

    def mean(p: PyTree, h: PyTree, batch: PyTree) -> Array:
        return jnp.mean(model.losses(p, batch, way == AGAIN))

    def adam(h: PyTree) -> optax.GradientTransformation:
        return optax.adam(h["rate"], eps_root=UNDER_ROOT)

    def by_hand(p: PyTree, state: PyTree, h: PyTree, batch: PyTree) -> tuple:
        updates, state = adam(h).update(jax.grad(weighted)(p, h, batch), state, p)
        return optax.apply_updates(p, updates), state

    step = StepFunction(by_hand, lambda p, h: adam(h).init(p)) if way == REFERENCE else adam
    estimator, problem = Unrolled(step, steps, memory=memory), BilevelProblem(weighted, mean)
    examples = jax.tree.leaves(model.batch)[0].shape[0]
    hparams = {
        "rate": jnp.asarray(RATE),
        "weights": jnp.zeros(examples),
        "penalties": jax.tree.map(lambda w: jnp.zeros(()), model.params),
    }

    def gradient(h: PyTree, params: PyTree, batch: PyTree) -> PyTree:
        state = estimator.init(problem, params, h, batch)
        return estimator.hypergradient(problem, state, h, batch, batch).grad

    plan = estimator.plan(problem, model.params, hparams, model.batch)
    return gradient, (hparams, model.params, model.batch), plan
