"""Newton's method, for inner problems that must be solved to rounding error."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.expected import require
from hypergrad.inner.base import InnerSolution, InnerSolver
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.jacobian import jacobian_operator, solver_for
from hypergrad.problem import BilevelProblem
from hypergrad.residual import oriented
from hypergrad.restricted import RestrictedProblem
from hypergrad.tolerance import HasTolerance


class Newton(InnerSolver):
    """Newton's method with inner CG products and a backtracking line search.

    For smooth inner problems that must be solved to rounding error: convex models, the reference
    solves of `check_hypergradient`. Each step solves `H e = ∂f/∂w` by CG to a relative residual
    of `min(0.1, sqrt(‖∂f/∂w‖ / ‖∂f/∂w at the start‖))` (inexact Newton, superlinear; Nocedal &
    Wright, *Numerical Optimization*, section 7.1) and halves the step until the loss decreases.
    After a direction of non-positive curvature it solves with `H + shift I`, and lets the shift die
    away once the curvature is positive again.

    With an optimality map it solves `J e = r` and decreases `‖r‖`: a semismooth Newton method for
    the fixed points of proximal and projected steps (Qi & Sun 1993).

    **Arguments:**

    - `tol`: stop at `‖∂f/∂w‖ <= tol` (absolute), or when rounding error lets nothing decrease any
      more.
    - `max_steps`: Newton steps per run.
    - `linear_solver`: solves for the step. Its tolerance, if it has one, is replaced step by step.
    """

    tol: float | Scalar = 0.0
    max_steps: int | Int[Array, ""] = 100
    linear_solver: LinearSolver = CG(max_steps=1000)

    def __check_init__(self) -> None:
        require("Newton", "linear_solver", self.linear_solver, LinearSolver, "CG()")

    def with_tol(self, tol: float | Scalar) -> Self:
        """See `hypergrad.tolerance.HasTolerance`."""
        return eqx.tree_at(lambda s: s.tol, self, tol)

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        problem = oriented(problem, params, hparams, batch, key)
        given = RestrictedProblem(problem, params, hparams, batch, key=key)
        symmetric = problem.optimality is None

        def measure(point: PyTree) -> tuple[Scalar, PyTree]:
            if symmetric:
                return jax.value_and_grad(given.inner_loss)(point)
            residual = given.residual(point)
            return 0.5 * vector.vdot(residual, residual), residual

        def unfinished(carry: tuple) -> Array:
            _, _, _, norm, _, _, step, stuck = carry
            return (step < self.max_steps) & (norm > self.tol) & ~stuck

        def body(carry: tuple) -> tuple:
            point, value, gradient, norm, first, shift, step, _ = carry
            _, product = jax.linearize(given.residual, point)
            solver = solver_for(self.linear_solver, symmetric=symmetric)
            if isinstance(solver, HasTolerance):
                forcing = jnp.minimum(0.1, jnp.sqrt(norm / first))
                # The last step need not be better than what is asked for.
                forcing = jnp.maximum(forcing, 0.5 * jnp.minimum(self.tol / norm, 1))
                solver = solver.with_tol(forcing)
            operator = jacobian_operator(product, point, symmetric=symmetric).damped(shift)
            solution = solver.solve(operator, vector.widen(gradient))
            indefinite = solution.nonpositive_curvature
            larger = jnp.maximum(4 * shift, 2 * jnp.abs(solution.curvature_min))
            smaller = jnp.where(shift > 1e-3 * solution.curvature_max, shift / 4, 0)
            shift = jnp.where(indefinite, larger, smaller).astype(norm.dtype)
            direction = vector.cast_like(solution.value, point)
            # Half the squared residual falls along its own Newton step with slope -‖r‖².
            slope = vector.vdot(gradient, direction) if symmetric else norm**2
            newton = (slope > 0) & vector.all_finite(direction)
            direction = vector.where(newton, direction, gradient)
            slope = jnp.where(newton, slope, norm**2)
            rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)

            def try_step(search: tuple) -> tuple:
                size, halvings, *_ = search
                candidate = vector.axpy(-size, direction, point)
                new_value, new_gradient = measure(candidate)
                new_norm = vector.norm(new_gradient)
                # Near the solution the loss differences drown in rounding: there the gradient
                # decides.
                lower = new_value <= value - 1e-4 * size * slope
                flatter = (new_value <= value + rounding) & (new_norm < norm)
                good = (lower | flatter) & jnp.isfinite(new_norm)
                return size / 2, halvings + 1, good, candidate, new_value, new_gradient, new_norm

            start = (
                jnp.ones((), norm.dtype),
                jnp.zeros((), jnp.int32),
                jnp.asarray(False),
                point,
                value,
                gradient,
                norm,
            )
            _, _, good, candidate, new_value, new_gradient, new_norm = jax.lax.while_loop(
                lambda s: (s[1] < 40) & ~s[2], try_step, start
            )
            stuck = ~indefinite & (~good | ((new_norm >= norm) & (new_value >= value)))
            point = vector.where(good, candidate, point)
            gradient = vector.where(good, new_gradient, gradient)
            value = jnp.where(good, new_value, value)
            norm = jnp.where(good, new_norm, norm)
            return point, value, gradient, norm, first, shift, step + 1, stuck

        value, gradient = measure(given.w)
        norm = vector.norm(gradient)
        shift, steps = jnp.zeros_like(norm), jnp.zeros((), jnp.int32)
        start = (given.w, value, gradient, norm, norm, shift, steps, ~jnp.isfinite(norm))
        point, _, _, norm, _, _, steps, _ = jax.lax.while_loop(unfinished, body, start)
        return InnerSolution(given.params_at(point), None, steps, norm)
