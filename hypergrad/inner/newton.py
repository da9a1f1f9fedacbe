"""Newton's method, for inner problems that must be solved to rounding error."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

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


class _Iterate(eqx.Module):
    """Where Newton's method is.

    - `point`, `value`, `gradient`, `norm`: what is descended there, its slope and the slope's norm.
    - `shift`: of the Hessian in the next solve.
    - `stuck`: nothing decreases any more.
    """

    point: PyTree
    value: Scalar
    gradient: PyTree
    norm: Scalar
    shift: Scalar
    step: Int[Array, ""]
    stuck: Bool[Array, ""]


class _Trial(eqx.Module):
    """The next step size of the line search, and what the last one led to."""

    size: Scalar
    halvings: Int[Array, ""]
    good: Bool[Array, ""]
    point: PyTree
    value: Scalar
    gradient: PyTree
    norm: Scalar


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

        def measure(point: PyTree) -> tuple[Scalar, PyTree, Scalar]:
            if symmetric:
                value, gradient = jax.value_and_grad(given.inner_loss)(point)
            else:
                gradient = given.residual(point)
                value = 0.5 * vector.vdot(gradient, gradient)
            return value, gradient, vector.norm(gradient)

        def unfinished(at: _Iterate) -> Array:
            return (at.step < self.max_steps) & (at.norm > self.tol) & ~at.stuck

        def body(at: _Iterate) -> _Iterate:
            _, product = jax.linearize(given.residual, at.point)
            solver = solver_for(self.linear_solver, symmetric=symmetric)
            if isinstance(solver, HasTolerance):
                forcing = jnp.minimum(0.1, jnp.sqrt(at.norm / first))
                # The last step need not be better than what is asked for.
                forcing = jnp.maximum(forcing, 0.5 * jnp.minimum(self.tol / at.norm, 1))
                solver = solver.with_tol(forcing)
            operator = jacobian_operator(product, at.point, symmetric=symmetric).damped(at.shift)
            solution = solver.solve(operator, vector.widen(at.gradient))
            indefinite = solution.nonpositive_curvature
            larger = jnp.maximum(4 * at.shift, 2 * jnp.abs(solution.curvature_min))
            smaller = jnp.where(at.shift > 1e-3 * solution.curvature_max, at.shift / 4, 0)
            direction = vector.cast_like(solution.value, at.point)
            # Half the squared residual falls along its own Newton step with slope -‖r‖².
            slope = vector.vdot(at.gradient, direction) if symmetric else at.norm**2
            newton = (slope > 0) & vector.all_finite(direction)
            direction = vector.where(newton, direction, at.gradient)
            slope = jnp.where(newton, slope, at.norm**2)
            rounding = 10 * jnp.finfo(at.value.dtype).eps * jnp.abs(at.value)

            def try_step(search: _Trial) -> _Trial:
                size, halvings = search.size, search.halvings
                point = vector.axpy(-size, direction, at.point)
                value, gradient, norm = measure(point)
                # Near the solution the loss differences drown in rounding: there the gradient
                # decides.
                lower = value <= at.value - 1e-4 * size * slope
                flatter = (value <= at.value + rounding) & (norm < at.norm)
                good = (lower | flatter) & jnp.isfinite(norm)
                return _Trial(size / 2, halvings + 1, good, point, value, gradient, norm)

            start = _Trial(
                jnp.ones((), at.norm.dtype),
                jnp.zeros((), jnp.int32),
                jnp.asarray(False),
                at.point,
                at.value,
                at.gradient,
                at.norm,
            )
            end = jax.lax.while_loop(lambda s: (s.halvings < 40) & ~s.good, try_step, start)
            better = (end.norm < at.norm) | (end.value < at.value)
            return _Iterate(
                point=vector.where(end.good, end.point, at.point),
                value=jnp.where(end.good, end.value, at.value),
                gradient=vector.where(end.good, end.gradient, at.gradient),
                norm=jnp.where(end.good, end.norm, at.norm),
                shift=jnp.where(indefinite, larger, smaller).astype(at.norm.dtype),
                step=at.step + 1,
                stuck=~indefinite & ~(end.good & better),
            )

        value, gradient, first = measure(given.w)
        none = jnp.zeros((), jnp.int32)
        stuck = ~jnp.isfinite(first)
        start = _Iterate(given.w, value, gradient, first, jnp.zeros_like(first), none, stuck)
        end = jax.lax.while_loop(unfinished, body, start)
        return InnerSolution(given.params_at(end.point), None, end.step, end.norm)
