"""The option `error_estimate`: how a hypergradient is judged, and at what cost."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar

from hypergrad.expected import require
from hypergrad.implicit.adjoint import LinearSystem
from hypergrad.implicit.curvature import Curvature
from hypergrad.implicit.error import Estimated, Measured, Sensitivity, estimate_error
from hypergrad.implicit.inverse import Inverse, KrylovInverse, dense_inverse, krylov_inverse
from hypergrad.implicit.linearisation import Linearisation, is_narrow, linearised, widened
from hypergrad.implicit.units import Units
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.gmres import GMRES
from hypergrad.linear.minres import MINRES
from hypergrad.linear.random import random_signs
from hypergrad.restricted import RestrictedProblem

# Steps of the Krylov solves at least, and their tolerance.
_STEPS, _TOL = 50, 1e-3


class Result(eqx.Module):
    """A hypergradient `direct − size · mixed`, and the adjoint solution that it comes from.

    **Fields:**

    - `cotangent`: `∂g/∂w`.
    - `adjoint`, `size`: the solution of the scaled adjoint system, and its scale.
    - `products`: spent on it.
    - `direct`, `mixed`: `∂g/∂λ`, and `Cᵀ` times `adjoint`.
    """

    cotangent: PyTree
    adjoint: PyTree
    size: Scalar
    products: Array
    direct: PyTree
    mixed: PyTree


class ErrorEstimate(eqx.Module):
    """How `ImplicitDifferentiation` estimates its error.

    The estimate is computed in at least float32: of params, data and hyperparameters in half
    precision it sees the digits that they lack.

    **Arguments:**

    - `solver`: for the solves of the estimate, which are then in the units of the params. `None`
      forms the matrix of up to `dense` parameters;
      above it takes MINRES, or for a system that is not symmetric GMRES, to a relative residual
      of 1e-3 within the number of products that the hypergradient itself took, or 50 if it took
      fewer.
    - `safety`: factor on the estimate. With the default it covers the true error in at least 99 %
      of the cases of `benchmarks/error_coverage.py`.
    - `dense`: largest number of parameters for which the matrix is formed.
    - `wanted`: whether this hypergradient is judged. An algorithm that carries an estimate from
      step to step sets it, traced; without an estimate `info.error` is NaN and costs nothing.
    """

    solver: LinearSolver | None = None
    safety: float | Scalar = 2.0
    wanted: bool | Bool[Array, ""] = True
    dense: int = eqx.field(static=True, default=256)

    def __check_init__(self) -> None:
        if self.solver is not None:
            require("ErrorEstimate", "solver", self.solver, LinearSolver, "MINRES()")

    def __call__(
        self,
        given: RestrictedProblem,
        curvature: Curvature,
        here: Linearisation,
        result: Result,
        scale: Scalar,
    ) -> Estimated:
        """The estimated relative error of `result`, and what the estimate cost.

        **Arguments:**

        - `given`: the problem as the user gave it, its losses not traced.
        - `here`: its linearisation.
        - `scale`: what the inner residual is relative to.
        """

        def judged() -> Estimated:
            wide = _widened(given, curvature, here)
            estimate = self._estimate(wide, result, scale)
            return Estimated(estimate.error.astype(scale.dtype), estimate.calls)

        if self.wanted is True:
            return judged()
        unknown = Estimated(jnp.full_like(scale, jnp.nan), jnp.zeros((), jnp.int32))
        return jax.lax.cond(self.wanted, judged, lambda: unknown)

    def _estimate(self, here: Linearisation, result: Result, scale: Scalar) -> Estimated:
        w, h = here.given.w, here.given.h
        unit = here.unit()
        # Everything is divided by the size of the cotangent, as the adjoint is.
        size = result.size
        inverse_size = 1 / jnp.where(jnp.isfinite(size) & (size > 0), size, 1)

        inverse = self._inverse(here.system, result, unit)
        units = inverse.units

        def lagrangian(point: PyTree, lam: PyTree, adjoint: PyTree) -> Scalar:
            p, q = (vector.cast_like(units.back(t), w) for t in (point, adjoint))
            loss = here.given.outer_loss(p, lam)
            return (inverse_size * loss).astype(loss.dtype) - here.slope(p, lam, q)

        def at(point: PyTree, adjoint: PyTree) -> Sensitivity:
            pieces = jax.grad(lagrangian, argnums=(1, 0, 2))(point, h, adjoint)
            gradient, linear, inner = (vector.widen(piece) for piece in pieces)
            return Sensitivity(gradient, linear, vector.scale(-1, inner))

        along = random_signs(h)

        def bent(point: PyTree, adjoint: PyTree, z: PyTree) -> PyTree:
            def slope(p: PyTree) -> Scalar:
                by_w, by_h = jax.grad(lagrangian, argnums=(0, 1))(p, h, adjoint)
                return vector.vdot(by_h, along) - vector.vdot(by_w, z)

            return vector.widen(jax.grad(slope)(point))

        direct = vector.scale(inverse_size, result.direct)
        return estimate_error(
            self.safety,
            at,
            units.back(vector.widen(here.moved(along))),
            bent,
            inverse,
            Measured(
                point=units.into(vector.widen(w)),
                adjoint=units.into(result.adjoint),
                gradient=vector.sub(direct, result.mixed),
                magnitude=vector.norm(direct) + vector.norm(result.mixed),
                cotangent=inverse_size * vector.norm(units.back(result.cotangent)),
                # Rounding of a residual is spread as its entries are: evenly in these units.
                noise=unit * scale / units.spread,
                unit=unit,
                minimum=here.given.problem.optimality is None,
            ),
        )

    def _inverse(self, system: LinearSystem, result: Result, unit: float) -> Inverse:
        if self.solver is not None:
            return KrylovInverse(Units.of_user(result.adjoint), system, self.solver)
        if vector.size(result.adjoint) <= self.dense:
            return dense_inverse(system, result.adjoint, unit)
        method = MINRES if system.symmetric else GMRES
        solver = method(_TOL, jnp.maximum(result.products, _STEPS))
        return krylov_inverse(system, result.adjoint, solver)


def _widened(given: RestrictedProblem, curvature: Curvature, here: Linearisation) -> Linearisation:
    """`here` in at least float32, if it is not and the losses allow it."""
    if not is_narrow(given):
        return here
    try:
        return linearised(widened(given).traced(), curvature)
    except TypeError:
        # Losses that insist on their types are judged in them.
        return here
