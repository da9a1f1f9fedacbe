"""HOAG: solve only as exactly as the outer iteration can use.

Pedregosa, "Hyperparameter optimization with approximate gradient" (2016). Outer step `k` solves the
inner problem and the linear system to a tolerance `ε_k`; if `Σ ε_k` is finite the hyperparameters
still converge to a stationary point, and the early steps cost next to nothing. Both solves are
warm-started. The step is `λ ← P(λ − p / L)` with an `L` that follows the outer loss.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.linear import vector
from hypergrad.outer.base import (
    BREAKDOWN,
    RUNNING,
    Batches,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    check_reach,
    differentiable,
    move,
    outer_info,
    select,
)
from hypergrad.outer.soba import outer_terms
from hypergrad.problem import BilevelProblem

SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "quadratic": lambda k: 0.1 / (k + 1.0) ** 2,
    "cubic": lambda k: 0.1 / (k + 1.0) ** 3,
    "exponential": lambda k: 0.1 * 0.9**k,
}


def with_tolerances(
    estimator: ImplicitDifferentiation, inner: Array | float, linear: Array | float
) -> ImplicitDifferentiation:
    """The estimator with other tolerances.

    **Arguments:**

    - `inner`: the inner solver stops at `‖∂f/∂w‖ <= inner`.
    - `linear`: the linear solver stops at this relative residual.
    """
    return eqx.tree_at(lambda e: (e.solver.tol, e.linear_solver.tol), estimator, (inner, linear))


def require_tolerances(algorithm: OuterAlgorithm, estimator: Any) -> None:
    """Refuse an estimator whose accuracy cannot be chosen.

    **Raises:** `ValueError` saying what lacks a tolerance.
    """
    name = type(algorithm).__name__
    if not isinstance(estimator, ImplicitDifferentiation):
        raise ValueError(
            f"{name} works with ImplicitDifferentiation, got {type(estimator).__name__}."
        )
    for role, solver in (("solver", estimator.solver), ("linear_solver", estimator.linear_solver)):
        if not hasattr(solver, "tol"):
            raise ValueError(
                f"{name} chooses the accuracy of the estimator's {role}: expected one with a `tol` "
                f"(`OptaxSolver`, `Newton`; `CG`), received {type(solver).__name__}."
            )


class HOAGState(OuterState):
    """The common state, in which all but `hparams` belongs to the last point kept, and more.

    - `estimator_state`: at the last point kept.
    - `value`, `slack`: outer loss there, and how much of it the inner residual may account for.
    - `adjoint_norm`: `‖q‖` there.
    - `lipschitz`: `L`, the inverse step size.
    - `tolerance`: what the adaptive schedule asks for next, relative.
    - `tighten`: by how much failures have tightened the schedule.
    """

    estimator_state: Any
    value: Scalar
    slack: Scalar
    adjoint_norm: Scalar
    lipschitz: Scalar
    tolerance: Scalar
    tighten: Scalar


class HOAG(OuterAlgorithm):
    """Hyperparameter optimization with approximate gradient.

    Each step solves at the candidate `λ⁺ = P(λ − p / L)` and compares the outer loss there with

        F(λ) + ⟨p, λ⁺ − λ⟩ + L/2 ‖λ⁺ − λ‖² + slack

    where the slack, `‖q‖ ‖∂f/∂w‖` at both points, is what the attained inner accuracy leaves open.
    If the loss is below, `L` was large enough: the point is kept, and `L` shrinks unless it took
    the slack to pass. If not, `L` doubles; the point is kept if it is at least no worse than the
    last one, else the next step returns to that one, with a tolerance half as large. (The published
    code moves twice when it accepts, returns to the wrong point when it does not, and drops the
    direct term.)

    **Arguments:**

    - `estimator`: an `ImplicitDifferentiation` whose inner and linear solver have a `tol`; both are
      set anew at each step.
    - `tolerance`: "quadratic" `0.1 / k²`, "cubic" `0.1 / k³`, "exponential" `0.1 · 0.9^k`, or
      "adaptive": the slack at most a tenth of the decrease expected of the next step, and its root
      (at most 1e-2) for the linear solve. Or a function of the step number (from 0). Relative to
      `‖∂f/∂w‖` (or `‖H w‖`, the larger) at the start for the inner solve, to the right-hand side
      for the linear one. A tolerance that does not shrink converges only to a neighbourhood.
      Default "adaptive".
    - `step_size`: first `1 / L`; `None` makes the first step one of unit root-mean-square.
    - `growth`: `L` is multiplied by it after a success. Default 0.5; the published code has 0.95.
    - `floor`: smallest tolerance. Default 1e-10; in float32 choose about 1e-5.
    - `constraint`: feasible set of the hyperparameters; keep log-penalties in a `Box`, or a
      vanishing penalty makes the inner problem arbitrarily ill-conditioned.

    The inner residual reported is the estimator's, relative to the scale at the start.
    """

    estimator: ImplicitDifferentiation
    tolerance: str | Callable[[Array], Array] = eqx.field(static=True, default="adaptive")
    step_size: float | Scalar | None = None
    growth: float | Scalar = 0.5
    floor: float | Scalar = 1e-10
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_tolerances(self, self.estimator)
        if isinstance(self.tolerance, str) and self.tolerance not in (*SCHEDULES, "adaptive"):
            raise ValueError(
                f"HOAG: tolerance must be one of {[*SCHEDULES, 'adaptive']} or a function of the "
                f"step number, got {self.tolerance!r}."
            )

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> HOAGState:
        """See `OuterAlgorithm.init`."""
        check_reach(self, problem, params, hparams, batches, key)
        state = self.estimator.init(problem, params, hparams, batches.linear, key=key)
        dtype = jax.eval_shape(
            lambda: problem.outer_loss(params, hparams, batches.outer, key)[0]
        ).dtype
        return HOAGState(
            step=jnp.zeros((), jnp.int32),
            hparams=hparams,
            visited=hparams,
            params=params,
            hypergradient=jax.tree.map(jnp.zeros_like, differentiable(hparams)),
            estimator_state=state,
            value=jnp.full((), jnp.inf, dtype),
            slack=jnp.zeros((), dtype),
            adjoint_norm=jnp.zeros((), dtype),
            lipschitz=jnp.ones((), dtype),
            tolerance=jnp.full((), 0.1, dtype),
            tighten=jnp.ones((), dtype),
        )

    def step(
        self,
        problem: BilevelProblem,
        state: HOAGState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[HOAGState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        dtype = state.value.dtype
        if self.tolerance == "adaptive":
            asked = state.tolerance
        else:
            rule = SCHEDULES[self.tolerance] if isinstance(self.tolerance, str) else self.tolerance
            asked = jnp.asarray(rule(state.step), dtype)
        tolerance = jnp.maximum(asked * state.tighten, self.floor).astype(dtype)
        # A direction need not be as exact as the values that a step is judged by.
        adaptive = self.tolerance == "adaptive"
        linear = jnp.minimum(jnp.sqrt(tolerance), 1e-2) if adaptive else tolerance
        estimator = with_tolerances(self.estimator, tolerance * state.estimator_state.scale, linear)

        candidate = state.hparams
        response, fit = estimator.fit(
            problem, state.estimator_state, candidate, batches.linear, key=key
        )
        value, outer = outer_terms(problem, response.params, candidate, batches.outer, key)
        residual = fit.residual * response.scale

        first = jnp.isinf(state.value)
        jump = vector.sub(differentiable(candidate), differentiable(state.visited))
        slope = vector.vdot(state.hypergradient, jump)
        model = state.value + slope + state.lipschitz / 2 * vector.vdot(jump, jump)
        slack = state.slack + state.adjoint_norm * residual
        finite = jnp.isfinite(value)
        success = finite & (first | (value <= model + slack))
        # What only the slack excuses is no evidence that longer steps would do.
        bolder = finite & (value <= model)
        keep = finite & (success | (value <= state.value + slack))

        def at_candidate() -> tuple:
            estimate = estimator.hypergradient(
                problem, response, candidate, batches.linear, batches.outer, key=key
            )
            norm = vector.norm(estimate.state.adjoint) * vector.norm(outer.params)
            found = (norm, estimate.info.error, estimate.info.linear_residual)
            measures = tuple(jnp.asarray(x, dtype) for x in found)
            return estimate.state, estimate.grad, measures, estimate.info.iterations

        def at_last() -> tuple:
            unknown = jnp.full((), jnp.nan, dtype)
            measures = (state.adjoint_norm, unknown, unknown)
            none = jnp.zeros((), jnp.int32)
            return state.estimator_state, state.hypergradient, measures, none

        estimator_state, grad, measures, products = _branch(keep, at_candidate, at_last)
        adjoint_norm, error, linear_residual = measures
        grad_norm = vector.norm(grad)
        good = jnp.isfinite(grad_norm) & (finite | ~first)

        size = sum(leaf.size for leaf in jax.tree.leaves(grad))
        if self.step_size is None:
            start = jnp.where(grad_norm > 0, grad_norm / jnp.sqrt(size), 1).astype(dtype)
        else:
            start = jnp.asarray(1 / self.step_size, dtype)
        factor = jnp.where(bolder, self.growth, jnp.where(success, 1.0, 2.0))
        lipschitz = state.lipschitz * factor
        lipschitz = jnp.where(first, start, lipschitz).astype(dtype)

        visited = select(keep, candidate, state.visited)
        towards = vector.scale(-1 / lipschitz, grad)
        moved = move(visited, towards, self.constraint)
        ahead = vector.sub(differentiable(moved), differentiable(visited))
        decrease = jnp.abs(vector.vdot(grad, ahead)) / 2
        # Two points share the slack of the next comparison.
        share = 0.05 * decrease / (adjoint_norm * estimator_state.scale)
        new = HOAGState(
            step=state.step,
            hparams=moved,
            visited=visited,
            params=estimator_state.params,
            hypergradient=grad,
            estimator_state=estimator_state,
            value=jnp.where(keep, value, state.value),
            slack=jnp.where(keep, adjoint_norm * residual, state.slack).astype(dtype),
            adjoint_norm=adjoint_norm,
            lipschitz=lipschitz,
            tolerance=jnp.clip(share, 0, 0.1).astype(dtype),
            tighten=(state.tighten * jnp.where(keep, 1, 0.5)).astype(dtype),
        )
        kept = eqx.tree_at(lambda s: s.step, select(good, new, state), state.step + 1)
        info = outer_info(
            kept.value,
            kept.hypergradient,
            kept.visited,
            self.constraint,
            calls=fit.iterations + 1 + jnp.where(keep, products + 2, 0),
            error=error,
            inner_residual=fit.residual,
            linear_residual=linear_residual,
            inner_iterations=fit.iterations,
            step_size=1 / lipschitz,
            tolerance=tolerance,
            accepted=keep,
            stop=jnp.where(good, RUNNING, BREAKDOWN),
        )
        return kept, info


def _branch(condition: Array, yes: Callable[[], tuple], no: Callable[[], tuple]) -> tuple:
    """`yes()` or `no()`, computing only that one; leaves that are not arrays are `no`'s."""
    static = eqx.filter(no(), eqx.is_array, inverse=True)
    chosen = jax.lax.cond(
        condition,
        lambda: eqx.filter(yes(), eqx.is_array),
        lambda: eqx.filter(no(), eqx.is_array),
    )
    return eqx.combine(chosen, static)
