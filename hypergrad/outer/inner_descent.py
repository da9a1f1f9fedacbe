"""Gradient descent of the inner loss, each step on a mini-batch of its own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.outer.batches import Batches
from hypergrad.restricted import RestrictedProblem


def on_fit(here: RestrictedProblem, batches: Batches, fit: Array | int) -> RestrictedProblem:
    """The problem at the same point, with the inner mini-batch (and the noise) of fit `fit`."""
    noise = None if here.key is None else jax.random.fold_in(here.key, fit)
    return replace(here, inner_batch=batches.inner(fit), key=noise)


def inner_descent(
    here: RestrictedProblem, batches: Batches, steps: int, step_size: Array | float
) -> tuple[PyTree, Scalar]:
    """The differentiable part of the params after `steps` steps, and the last gradient's norm."""

    def descend(w: PyTree, fit: Array) -> tuple[PyTree, Scalar]:
        gradient = on_fit(here, batches, fit).residual(w)
        return vector.axpy(-step_size, gradient, w), vector.norm(gradient)

    w, norms = jax.lax.scan(descend, here.w, jnp.arange(steps))
    return w, norms[-1]
