"""Hyperparameters as the input of a network that responds to them."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from hypergrad.paths import inputs_of
from hypergrad.restricted import RestrictedProblem


def ravel(hparams: PyTree) -> tuple[Float[Array, " h"], Callable[[Array], PyTree]]:
    """The floating-point arrays of hparams as one vector, and the way back."""
    differentiable, constant = eqx.partition(hparams, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(differentiable)
    return flat, lambda point: eqx.combine(unravel(point), constant)


def effective(here: RestrictedProblem) -> Float[Array, " h"]:
    """Ones for the entries of hparams that the inner loss reads, zeros for the others.

    What the inner loss does not read has no best response: a network with such an input would fit
    noise along it. Found leaf by leaf in the traced loss; nothing is computed.
    """
    loss = here.residual if here.problem.inner is None else here.inner_loss
    program = jax.make_jaxpr(lambda h: loss(None, h))(here.h).jaxpr
    read = inputs_of(program, *range(len(program.outvars)))
    leaves, structure = jax.tree.flatten(here.h)
    marks = [jnp.full_like(leaf, float(used)) for leaf, used in zip(leaves, read, strict=True)]
    return ravel_pytree(jax.tree.unflatten(structure, marks))[0]
