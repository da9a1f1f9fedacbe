"""Conjugate gradient on the normal equations `Aᵀ A x = Aᵀ b` (CGLS), for any `A`.

Hestenes & Stiefel (1952), in the form that keeps `b − A x` rather than `Aᵀ(b − A x)` (Björck,
"Numerical Methods for Least Squares Problems", 1996): `Aᵀ A` is never applied as one map.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.system import Spectrum, check_stop, normalise, nothing_met


class NormalCG(LinearSolver):
    """CG on the normal equations; a product and a transposed product a step.

    Never breaks down, whatever the operator, and gives the least-squares solution of least norm
    where there is no other; but it feels the square of the condition number. `curvature_min` and
    `curvature_max` bound `xᵀ A x / xᵀ x` on the directions used, as for every solver.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps. May be traced. Default 1000.
    """

    tol: float | Scalar = 1e-6
    max_steps: int | Int[Array, ""] = 1000

    def __check_init__(self) -> None:
        check_stop("NormalCG", self.tol, self.max_steps)

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSolver.solve`."""
        system = normalise(operator, rhs, initial)
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps

        def unfinished(c: _Iteration) -> Array:
            return (c.step < self.max_steps) & (c.size > self.tol) & ~c.stop

        def body(c: _Iteration) -> _Iteration:
            # The gradient Aᵀ r comes first, so that each product is written (and compiled) once.
            gradient = system.operator.transpose_mv(c.residual)
            square = vector.vdot(gradient, gradient)
            factor = jnp.where(c.step > 0, square / c.square, 0)
            direction = vector.axpy(factor, c.direction, gradient)
            # A direction of zeros means a solved system: then do not ask for its image.
            flat = square <= (eps * c.scale * c.size) ** 2
            image = system.operator.mv(vector.where(flat, c.residual, direction))
            length = vector.vdot(image, image)
            finite = jnp.isfinite(square) & jnp.isfinite(length)
            good = finite & ~flat & (length > 0)
            step = jnp.where(good, square / jnp.where(length > 0, length, 1), 0)
            image = vector.where(finite, image, c.residual)
            residual = vector.axpy(-step, image, c.residual)
            size = vector.norm(residual)
            own = vector.vdot(direction, direction)
            return _Iteration(
                step=c.step + 1,
                x=vector.where(good, vector.axpy(step, direction, c.x), c.x),
                residual=residual,
                direction=direction,
                square=square,
                size=jnp.where(good, size, c.size),
                scale=jnp.where(good, jnp.maximum(c.scale, jnp.sqrt(length / own)), c.scale),
                spectrum=vector.where(
                    good, c.spectrum.met(vector.vdot(direction, image) / own), c.spectrum
                ),
                stop=~good,
                breakdown=~finite,
            )

        first = vector.norm(system.residual)
        start = _Iteration(
            step=jnp.zeros((), jnp.int32),
            x=system.start,
            residual=system.residual,
            direction=vector.zeros_like(system.rhs),
            square=jnp.ones((), dtype),
            size=first,
            scale=jnp.zeros((), dtype),
            spectrum=nothing_met(dtype),
            stop=first == 0,
            breakdown=jnp.asarray(False),
        )
        end = jax.lax.while_loop(unfinished, body, start)
        return system.solution(
            end.x,
            end.size,
            system.products + 2 * end.step,
            nonpositive=end.spectrum.low <= 0,
            breakdown=end.breakdown,
            spectrum=end.spectrum,
        )


class _Iteration(eqx.Module):
    step: Array
    x: PyTree
    residual: PyTree
    direction: PyTree
    square: Array
    size: Array
    scale: Array
    spectrum: Spectrum
    stop: Array
    breakdown: Array
