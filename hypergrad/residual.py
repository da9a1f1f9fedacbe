"""The residual of the inner problem: what vanishes at its solution."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.random import random_signs
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem


class Oriented(eqx.Module):
    """An optimality map of the sign that solvers expect: near a minimum it is like a gradient."""


class _Signed(Oriented):
    """An optimality map times a sign."""

    optimality: Callable
    sign: Scalar

    def __call__(self, *arguments: PyTree) -> PyTree:
        return vector.scale(self.sign, self.optimality(*arguments))


def oriented(
    problem: BilevelProblem, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None
) -> BilevelProblem:
    """The same problem, the Jacobian of a plain optimality map brought to a positive trace.

    A residual and its negative vanish at the same point and have the same hypergradient. But a
    series or a shift of the Jacobian wants `w − T(w)`, near the identity, and not `T(w) − w`. The
    trace shows which it is, from one product with random signs; of a contraction `T` for certain.
    """
    if problem.optimality is None or isinstance(problem.optimality, Oriented):
        return problem
    given = RestrictedProblem(problem, params, hparams, batch, key=key)
    signs = random_signs(given.w)
    _, image = jax.jvp(given.residual, (given.w,), (signs,))
    trace = vector.vdot(signs, image)
    signed = _Signed(problem.optimality, jnp.where(trace < 0, -1, 1))
    return eqx.tree_at(lambda p: p.optimality, problem, signed)


def residual_scale(residual: Callable[[PyTree], PyTree], start: PyTree) -> tuple[Scalar, Scalar]:
    """What a residual is relative to, at the price of one inner gradient and one product.

    **Arguments:**

    - `residual`: the residual `r` as a function of the differentiable part of params.
    - `start`: that part, at the point given to an estimator's `init`.

    **Returns:** `‖r‖`, and the larger of `‖r‖` and `‖∂r/∂w w‖`; 1 in its place if neither says
    anything (zero, or not finite).
    """
    # A barrier, so that zero params made inside a program do not reach the product as a constant
    # (see `hypergrad.linear.base`).
    start = jax.lax.optimization_barrier(start)
    value, image = jax.jvp(residual, (start,), (start,))
    norm = vector.norm(value)
    scale = jnp.fmax(norm, vector.norm(image))
    return norm, jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1)
