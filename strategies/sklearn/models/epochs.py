"""Training in epochs, with the rules by which scikit-learn's networks step and stop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

# What an adaptive rate is divided by, and below which it is not.
_DIVISOR = 5.0
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Stopping:
    """When training ends.

    - `epochs`: at the latest.
    - `tol`, `patience`: or once the loss has not fallen by `tol` for more than so many epochs.
    """

    epochs: int
    tol: float
    patience: float


class Rule(NamedTuple):
    """How weights move.

    - `start`: memory, from the weights.
    - `rate`: the first learning rate.
    - `step`: `(gradient, memory, rate) -> (updates, memory)`.
    - `after`: `(number of samples seen, rate) -> rate` at an epoch's end.
    - `adaptive`: where training would stop, the rate falls instead.
    """

    start: Callable[[PyTree], PyTree]
    rate: Scalar
    step: Callable[[PyTree, PyTree, Scalar], tuple[PyTree, PyTree]]
    after: Callable[[Scalar, Scalar], Scalar]
    adaptive: bool


def adam(rate: Scalar, beta_1: Scalar, beta_2: Scalar, epsilon: float) -> Rule:
    """Adam (Kingma and Ba 2015), with the bias corrections in the rate."""

    def start(params: PyTree) -> PyTree:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.zeros(())

    def step(gradient: PyTree, memory: PyTree, rate: Scalar) -> tuple[PyTree, PyTree]:
        first, second, count = memory
        count = count + 1.0
        first = jax.tree.map(lambda m, g: beta_1 * m + (1.0 - beta_1) * g, first, gradient)
        second = jax.tree.map(lambda v, g: beta_2 * v + (1.0 - beta_2) * g**2, second, gradient)
        scale = rate * jnp.sqrt(1.0 - beta_2**count) / (1.0 - beta_1**count)

        def update(m: Array, v: Array) -> Array:
            # A weight without any gradient so far stays, and its root has no derivative.
            root = jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)
            return -scale * m / (root + epsilon)

        return jax.tree.map(update, first, second), (first, second, count)

    return Rule(start, rate, step, lambda seen, rate: rate, False)


def sgd(rate: Scalar, momentum: Scalar, nesterov: bool, schedule: str, power: Scalar) -> Rule:
    """Stochastic gradient descent with momentum; schedules constant, invscaling and adaptive."""

    def step(gradient: PyTree, memory: PyTree, current: Scalar) -> tuple[PyTree, PyTree]:
        def move(v: Array, g: Array) -> Array:
            return momentum * v - current * g

        velocity = jax.tree.map(move, memory, gradient)
        return (jax.tree.map(move, velocity, gradient) if nesterov else velocity), velocity

    def after(seen: Scalar, current: Scalar) -> Scalar:
        return rate / (seen + 1.0) ** power if schedule == "invscaling" else current

    start: Any = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return Rule(start, rate, step, after, schedule == "adaptive")


def run_epochs(
    loss: Callable[[PyTree, Int[Array, " b"]], tuple[Scalar, Scalar]],
    rule: Rule,
    start: PyTree,
    batches: Int[Array, "epochs count b"],
    stopping: Stopping,
) -> PyTree:
    """The weights after the last epoch.

    **Arguments:**

    - `loss`: of the weights on a batch: what they follow down, and what is looked at to stop.
    - `batches`: positions of samples, of -1 where there is none; one epoch stands for all.
    """
    shuffled = batches.shape[0] > 1
    number = jnp.sum(batches[0] >= 0).astype(rule.rate.dtype)

    def batch(carry: tuple, at: Int[Array, " b"]) -> tuple[tuple, Scalar]:
        params, memory, rate = carry
        (_, shown), gradient = jax.value_and_grad(lambda p: loss(p, at), has_aux=True)(params)
        updates, later = rule.step(gradient, memory, rate)
        moved = jax.tree.map(jnp.add, params, updates)
        some = at[0] >= 0
        kept = jax.tree.map(
            lambda new, old: jnp.where(some, new, old), (moved, later), (params, memory)
        )
        return (*kept, rate), jnp.where(some, shown * jnp.sum(at >= 0), 0.0)

    def epoch(carry: tuple) -> tuple:
        params, memory, rate, lowest, idle, count, _ = carry
        order = batches[jnp.where(shuffled, count, 0)]
        (params, memory, rate), losses = jax.lax.scan(batch, (params, memory, rate), order)
        mean = jnp.sum(losses) / number
        idle = jnp.where(mean > lowest - stopping.tol, idle + 1, 0)
        count = count + 1
        rate = rule.after(count * number, rate)
        stuck = idle > stopping.patience
        if rule.adaptive:
            falls = stuck & (rate > _SMALLEST)
            rate = jnp.where(falls, rate / _DIVISOR, rate)
            stuck, idle = stuck & ~falls, jnp.where(falls, 0, idle)
        return params, memory, rate, jnp.minimum(lowest, mean), idle, count, stuck

    first = (start, rule.start(start), rule.rate, jnp.full_like(rule.rate, jnp.inf), 0, 0)
    begin = (*first, jnp.zeros((), bool))
    return jax.lax.while_loop(lambda c: (c[5] < stopping.epochs) & ~c[6], epoch, begin)[0]
