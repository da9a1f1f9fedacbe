"""Newton's method, for inner problems that must be solved to rounding error."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.inner.base import InnerSolution, InnerSolver
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.gmres import GMRES
from hypergrad.linear.jacobian import jacobian_operator, solver_for
from hypergrad.linear.pcg import PCG
from hypergrad.problem import BilevelProblem
from hypergrad.residual import oriented, residual_of


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
    - `linear_solver`: solves for the step. The `tol` of a `CG`, `PCG` or `GMRES` is replaced
      step by step.
    """

    tol: float | Scalar = 0.0
    max_steps: int | Int[Array, ""] = 100
    linear_solver: LinearSolver = CG(max_steps=1000)

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
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)
        symmetric = problem.optimality is None
        problem = oriented(problem, params, hparams, batch, key)
        residual_at = residual_of(problem, static, hparams, batch, key)

        def measure(point: PyTree) -> tuple[Scalar, PyTree]:
            if symmetric:
                return jax.value_and_grad(
                    lambda p: problem.inner_loss(eqx.combine(p, static), hparams, batch, key)[0]
                )(point)
            residual = residual_at(point)
            return 0.5 * vector.vdot(residual, residual), residual

        def unfinished(carry: tuple) -> Array:
            _, _, _, norm, _, _, step, stuck = carry
            return (step < self.max_steps) & (norm > self.tol) & ~stuck

        def body(carry: tuple) -> tuple:
            point, value, gradient, norm, first, shift, step, _ = carry
            _, product = jax.linearize(residual_at, point)
            solver = solver_for(self.linear_solver, symmetric=symmetric)
            if isinstance(solver, CG | PCG | GMRES):
                forcing = jnp.minimum(0.1, jnp.sqrt(norm / first))
                # The last step need not be better than what is asked for.
                forcing = jnp.maximum(forcing, 0.5 * jnp.minimum(self.tol / norm, 1))
                solver = eqx.tree_at(lambda s: s.tol, solver, forcing)
            unit = vector.scale(1 / norm, gradient)
            operator = jacobian_operator(product, point, symmetric=symmetric).damped(shift)
            solution = solver.solve(operator, vector.widen(unit))
            indefinite = solution.nonpositive_curvature
            larger = jnp.maximum(4 * shift, 2 * jnp.abs(solution.curvature_min))
            smaller = jnp.where(shift > 1e-3 * solution.curvature_max, shift / 4, 0)
            shift = jnp.where(indefinite, larger, smaller).astype(norm.dtype)
            direction = vector.cast_like(vector.scale(norm, solution.value), point)
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

        value, gradient = measure(dynamic)
        norm = vector.norm(gradient)
        shift, steps = jnp.zeros_like(norm), jnp.zeros((), jnp.int32)
        start = (dynamic, value, gradient, norm, norm, shift, steps, ~jnp.isfinite(norm))
        point, _, _, norm, _, _, steps, _ = jax.lax.while_loop(unfinished, body, start)
        return InnerSolution(eqx.combine(point, static), None, steps, norm)
