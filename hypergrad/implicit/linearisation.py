"""A bilevel problem at one point: its losses as functions, and its linearised inner problem."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.implicit.adjoint import LinearSystem
from hypergrad.implicit.curvature import Curvature
from hypergrad.linear import vector
from hypergrad.programs import parts
from hypergrad.restricted import RestrictedProblem, Slope


def is_narrow(given: RestrictedProblem) -> bool:
    """Whether an array of the point or of the data has fewer digits than float32."""
    arrays = jax.tree.leaves(eqx.filter(_values(given), eqx.is_array))
    return any(_is_narrow(array.dtype) for array in arrays)


def widened(given: RestrictedProblem) -> RestrictedProblem:
    """The same with every floating-point array of the point and the data in at least float32."""
    params, hparams, inner_batch, outer_batch = jax.tree.map(_wide, _values(given))
    return RestrictedProblem(given.problem, params, hparams, inner_batch, outer_batch, given.key)


def _values(given: RestrictedProblem) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    return given.params, given.hparams, given.inner_batch, given.outer_batch


class Linearisation(eqx.Module):
    """Everything that implicit differentiation takes from a problem at one point.

    **Fields:**

    - `given`: the problem at the point.
    - `residual`: the inner residual `r`.
    - `system`: its linearisation.
    - `slope`: `(w, λ, q) -> ⟨r(w, λ), q⟩`.
    """

    given: RestrictedProblem
    residual: PyTree
    system: LinearSystem
    slope: Slope

    def mixed(self, q: PyTree) -> PyTree:
        """`Cᵀ q`, for `q` like params."""
        return jax.grad(self.slope, argnums=1)(self.given.w, self.given.h, q)

    def moved(self, s: PyTree) -> PyTree:
        """`C s`, for `s` like the differentiable part of hparams."""
        (image,) = jax.vjp(self.mixed, self.given.w)[1](s)
        return image

    def unit(self) -> float:
        """The rounding unit: that of params, or of fewer digits that the losses use inside."""
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(self.given.w)]

        def losses(p: PyTree, lam: PyTree) -> Scalar:
            return self.given.outer_loss(p, lam) + self.slope(p, lam, p)

        _collect_narrow(jax.make_jaxpr(losses)(self.given.w, self.given.h).jaxpr, dtypes)
        return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def linearised(given: RestrictedProblem, curvature: Curvature) -> Linearisation:
    """Linearise a problem at a point."""
    residual, system = curvature.linearize(given)
    return Linearisation(given, residual, system, given.directional_derivative())


def _is_narrow(dtype: jnp.dtype) -> bool:
    """Whether it is a floating-point type of fewer digits than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _wide(leaf: PyTree) -> PyTree:
    return vector.widen(leaf) if eqx.is_inexact_array(leaf) else leaf


def _collect_narrow(program: jax.extend.core.Jaxpr, found: list[jnp.dtype]) -> None:
    """Append the floating-point types of fewer digits than float32 of what a program computes."""
    for eqn in program.eqns:
        for out in eqn.outvars:
            dtype = getattr(out.aval, "dtype", None)
            if dtype is not None and _is_narrow(dtype):
                found.append(dtype)
        for part in parts(eqn):
            _collect_narrow(part, found)
