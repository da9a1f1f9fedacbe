"""Steps in the hyperparameters over which a training is tried."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from hypergrad.paths import require_differentiable


def flat(params: PyTree) -> Float[Array, " parameters"]:
    """The floating-point parameters as one vector."""
    return ravel_pytree(eqx.filter(params, eqx.is_inexact_array))[0]


def check_step(step: PyTree) -> None:
    """Refuse what is no positive number, nor a pytree of such numbers.

    **Raises:** `ValueError`.
    """
    try:
        sizes = [np.asarray(leaf, float) for leaf in jax.tree.leaves(step)]
    except (TypeError, ValueError, OverflowError):
        sizes = []
    if not sizes or not all(np.all((size > 0) & np.isfinite(size)) for size in sizes):
        raise ValueError(f"step: expected positive finite numbers, received {step!r}.")


def step_sizes(step: PyTree, h: PyTree) -> Float[Array, " entries"]:
    """The size of the step in every entry of the differentiable hyperparameters `h`.

    **Raises:** `ValueError` for a step of another structure or shape than `h`, and where there is
    nothing to differentiate.
    """
    require_differentiable(jax.tree.leaves(h))
    leaves = jax.tree.leaves(step)
    one = len(leaves) == 1 and leaves[0] is step and jnp.ndim(step) == 0
    try:
        each = jax.tree.map(
            lambda a, s: jnp.broadcast_to(jnp.asarray(s, a.dtype), a.shape),
            h,
            jax.tree.map(lambda _: step, h) if one else step,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"step: expected a positive number, or such numbers in a pytree like hparams, "
            f"received {step!r}."
        ) from error
    return ravel_pytree(each)[0]
