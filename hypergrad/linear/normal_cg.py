"""Conjugate gradient on the normal equations `Aᵀ A x = Aᵀ b` (CGLS), for any `A`.

Hestenes & Stiefel (1952), in the form that keeps `b − A x` rather than `Aᵀ(b − A x)` (Björck,
"Numerical Methods for Least Squares Problems", 1996): `Aᵀ A` is never applied as one map.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.solution import LinearSolution, Spectrum, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import RUNNING, Outcome


class NormalCG(IterativeSolver):
    """CG on the normal equations; a product and a transposed product a step.

    Never breaks down, whatever the operator, and gives the least-squares solution of least norm
    where there is no other; but how fast it converges depends on the square of the condition
    number. `curvature_min` and `curvature_max` bound `xᵀ A x / xᵀ x` on the directions used, as for
    every solver.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps. May be traced. Default 1000.
    """

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps
        x0, r0, products = system.begin()

        def unfinished(c: _Iteration) -> Array:
            return self.unfinished(system, c.step, c.size, c.outcome)

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
            size = vector.length(residual)
            outcome = Outcome.where(good, RUNNING, Outcome.stagnated)
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
                outcome=Outcome.where(finite, outcome, Outcome.not_finite),
            )

        start = _Iteration(
            step=jnp.zeros((), jnp.int32),
            x=x0,
            residual=r0,
            direction=vector.zeros_like(system.rhs),
            square=jnp.ones((), dtype),
            size=vector.length(r0),
            scale=jnp.zeros((), dtype),
            spectrum=nothing_met(dtype),
            outcome=RUNNING,
        )
        end = jax.lax.while_loop(unfinished, body, start)
        products = products + 2 * end.step
        return system.solution(end.x, end.size, products, end.outcome, end.spectrum, tol=self.tol)


class _Iteration(eqx.Module):
    step: Array
    x: PyTree
    residual: PyTree
    direction: PyTree
    square: Array
    size: Array
    scale: Array
    spectrum: Spectrum
    outcome: Outcome
