"""HOAG: solve only as exactly as the outer iteration can use.

Pedregosa, "Hyperparameter optimization with approximate gradient" (2016). Outer step `k` solves the
inner problem and the linear system to a tolerance `ε_k`; if `Σ ε_k` is finite the hyperparameters
still converge to a stationary point, and the early steps cost next to nothing. Both solves are
warm-started. The step is `λ ← P(λ − p / L)` with an `L` that follows the outer loss.

Two additions to the published method, both ours to combine and old in themselves. The adaptive
schedule judges steps by outer losses from which the effect of the inner residual is subtracted to
first order, `F(w) − ⟨q, ∂f/∂w⟩`: the adjoint is at hand, and much rougher inner solutions do
(Pierce & Giles, "Adjoint recovery of superconvergent functionals from PDE approximations", 2000).
And with `metric=QuasiNewton()` the steps are quasi-Newton steps.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.implicit import ImplicitDifferentiation, ImplicitState
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
from hypergrad.outer.constraints import Box, Constraint
from hypergrad.outer.quasi_newton import Curvature, QuasiNewton
from hypergrad.problem import BilevelProblem
from hypergrad.tolerance import HasTolerance

# How exactly the adaptive schedule knows adjoints at least, relative to themselves.
ROUGH = 0.01
# Its largest tolerance: what is left of the losses after the correction is of its square, and a
# metric is learnt from differences of hypergradients.
ROUGHEST = 1e-3

# What of the decrease that the slope promises a quasi-Newton step must bring.
SUFFICIENT = 0.01

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
    solver, linear_solver = estimator.solver, estimator.linear_solver
    assert isinstance(solver, HasTolerance)
    assert isinstance(linear_solver, HasTolerance)
    return eqx.tree_at(
        lambda e: (e.solver, e.linear_solver),
        estimator,
        (solver.with_tol(inner), linear_solver.with_tol(linear)),
    )


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
        if not isinstance(solver, HasTolerance):
            raise ValueError(
                f"{name} chooses the accuracy of the estimator's {role}: expected one with a "
                f"tolerance (`OptaxSolver`, `Newton`; `CG`), received {type(solver).__name__}."
            )


class HOAGState(OuterState):
    """The common state, in which all but `hparams` belongs to the last point kept, and more.

    - `estimator_state`: at the last point kept.
    - `value`: outer loss there.
    - `level`, `slack`: the loss by which steps are judged, and its uncertainty.
    - `curvature`: of the outer loss, if there is a `metric`.
    - `lipschitz`: `L`, the inverse step size.
    - `tolerance`: what the adaptive schedule asks for next, relative.
    - `tighten`: by how much failures have tightened the schedule.
    """

    estimator_state: Any
    value: Scalar
    level: Scalar
    slack: Scalar
    curvature: Curvature | None
    lipschitz: Scalar
    tolerance: Scalar
    tighten: Scalar


class HOAG(OuterAlgorithm):
    """Hyperparameter optimization with approximate gradient.

    Each step solves at the candidate `λ⁺ = P(λ − p / L)` and compares the outer loss there with

        F(λ) + ⟨p, λ⁺ − λ⟩ + L/2 ‖λ⁺ − λ‖² + slack

    where the slack, `‖q‖ ‖∂f/∂w‖` at both points, is what the attained inner accuracy leaves open.
    The adaptive schedule compares losses from which the effect of the inner residual is subtracted,
    `F − ⟨q, ∂f/∂w⟩`; the slack is then what the adjoint's own error and half of that effect leave.
    If the loss is below, `L` was large enough: the point is kept, and `L` shrinks unless it took
    the slack to pass. If not, `L` doubles; the point is kept if it is at least no worse than the
    last one, else the next step returns to that one, with a tolerance half as large and twice the
    slack. (The published code moves twice when it accepts, returns to the wrong point when it does
    not, and drops the direct term.)

    **Arguments:**

    - `estimator`: an `ImplicitDifferentiation` whose inner and linear solver have a `tol`; both are
      set anew at each step.
    - `tolerance`: "quadratic" `0.1 / k²`, "cubic" `0.1 / k³`, "exponential" `0.1 · 0.9^k`, or
      "adaptive": at most 1e-3, and such that the adjoint leaves of the slack at most a tenth of the
      decrease expected of the next step; its root (at most 1e-2) for the linear solve. Or a
      function of the step number (from 0). Relative to `‖∂f/∂w‖` (or `‖H w‖`, the larger) at the
      start for the inner solve, to the right-hand side for the linear one. A tolerance that does
      not shrink converges only to a neighbourhood. Default "adaptive".
    - `step_size`: first `1 / L`; `None` makes the first step one of unit root-mean-square.
    - `metric`: `QuasiNewton()` for steps `λ ← P(λ − B p / L)` with `L >= 1` and an inverse Hessian
      `B` learnt on the way: a fraction of the steps where hyperparameters are many and their
      effects differ by orders of magnitude. A success is then a hundredth of the decrease that the
      slope promises. It needs sets that hold entry by entry (`Box`). Default `None`, the gradient,
      as published.
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
    metric: QuasiNewton | None = None
    floor: float | Scalar = 1e-10
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_tolerances(self, self.estimator)
        if isinstance(self.tolerance, str) and self.tolerance not in (*SCHEDULES, "adaptive"):
            raise ValueError(
                f"HOAG: tolerance must be one of {[*SCHEDULES, 'adaptive']} or a function of the "
                f"step number, got {self.tolerance!r}."
            )
        sets = jax.tree.leaves(self.constraint, is_leaf=lambda x: isinstance(x, Constraint))
        odd = [type(x).__name__ for x in sets if not isinstance(x, Box)]
        if self.metric is not None and odd:
            raise ValueError(
                "HOAG: a metric needs a constraint that holds entry by entry (Box), received "
                f"{', '.join(odd)}. Drop the metric."
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
            level=jnp.full((), jnp.inf, dtype),
            slack=jnp.zeros((), dtype),
            curvature=None if self.metric is None else self.metric.init(differentiable(hparams)),
            lipschitz=jnp.ones((), dtype),
            tolerance=jnp.full((), ROUGHEST, dtype),
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
        adaptive = self.tolerance == "adaptive"
        # A direction need not be as exact as the losses that a step is judged by.
        linear = jnp.minimum(jnp.sqrt(tolerance), ROUGH) if adaptive else tolerance
        estimator = with_tolerances(self.estimator, tolerance * state.estimator_state.scale, linear)

        candidate = state.hparams
        response, fit = estimator.fit(
            problem, state.estimator_state, candidate, batches.linear, key=key
        )
        value, _ = problem.outer_loss(response.params, candidate, batches.outer, key)
        gradient = problem.residual(response.params, candidate, batches.linear, key)

        def judged(at: ImplicitState) -> tuple[Scalar, Scalar]:
            """The loss that counts, and its uncertainty."""
            bound = at.cotangent_size * vector.norm(at.adjoint) * vector.norm(gradient)
            if not adaptive:
                return value, bound
            effect = at.cotangent_size * vector.vdot(at.adjoint, gradient)
            return value - effect, ROUGH * bound + jnp.abs(effect) / 2

        level, doubt = judged(state.estimator_state)
        first = jnp.isinf(state.value)
        jump = vector.sub(differentiable(candidate), differentiable(state.visited))
        slope = vector.vdot(state.hypergradient, jump)
        if self.metric is None:
            model = state.level + slope + state.lipschitz / 2 * vector.vdot(jump, jump)
        else:
            model = state.level + SUFFICIENT * slope
        slack = state.slack + doubt
        finite = jnp.isfinite(level)
        success = finite & (first | (level <= model + slack))
        # What only the slack excuses is no evidence that longer steps would do.
        bolder = finite & (level <= model)
        keep = finite & (success | (level <= state.level + slack))

        def at_candidate() -> tuple:
            estimate = estimator.hypergradient(
                problem, response, candidate, batches.linear, batches.outer, key=key
            )
            found = (
                *judged(estimate.state),
                estimate.info.error,
                estimate.info.linear_residual,
            )
            measures = tuple(jnp.asarray(x, dtype) for x in found)
            return estimate.state, estimate.grad, measures, estimate.info.iterations

        def at_last() -> tuple:
            unknown = jnp.full((), jnp.nan, dtype)
            # A level that nothing comes up to is itself in doubt.
            measures = (state.level, 2 * state.slack, unknown, unknown)
            none = jnp.zeros((), jnp.int32)
            return state.estimator_state, state.hypergradient, measures, none

        estimator_state, grad, measures, products = _branch(keep, at_candidate, at_last)
        level, slack, error, linear_residual = measures
        grad_norm = vector.norm(grad)
        good = jnp.isfinite(grad_norm) & (finite | ~first)

        size = sum(leaf.size for leaf in jax.tree.leaves(grad))
        if self.step_size is not None:
            start = jnp.asarray(1 / self.step_size, dtype)
        elif self.metric is not None:
            start = jnp.ones((), dtype)
        else:
            start = jnp.where(grad_norm > 0, grad_norm / jnp.sqrt(size), 1).astype(dtype)
        factor = jnp.where(bolder, self.growth, jnp.where(success, 1.0, 2.0))
        lipschitz = jnp.where(first, start, state.lipschitz * factor).astype(dtype)

        visited = select(keep, candidate, state.visited)
        curvature = state.curvature
        downhill = vector.scale(-1, grad)
        if self.metric is not None and curvature is not None:
            # A whole step of the quasi-Newton method is what is to be tried first.
            lipschitz = jnp.maximum(lipschitz, 1)
            change = vector.sub(grad, state.hypergradient)
            learnt = self.metric.learn(
                curvature, select(first, vector.zeros_like(jump), jump), change, grad
            )
            curvature = select(keep, learnt, curvature)
            nudged = differentiable(move(visited, downhill, self.constraint))
            free = jax.tree.map(jnp.not_equal, nudged, differentiable(visited))
            downhill = self.metric.direction(curvature, grad, free)
        moved = move(visited, vector.scale(1 / lipschitz, downhill), self.constraint)
        ahead = vector.sub(differentiable(moved), differentiable(visited))
        decrease = jnp.abs(vector.vdot(grad, ahead)) / 2
        # Two points share the slack of the next comparison.
        length = estimator_state.cotangent_size * vector.norm(estimator_state.adjoint)
        share = 0.05 * decrease / (ROUGH * length * estimator_state.scale)
        new = HOAGState(
            step=state.step,
            hparams=moved,
            visited=visited,
            params=estimator_state.params,
            hypergradient=grad,
            estimator_state=estimator_state,
            value=jnp.where(keep, value, state.value),
            level=level,
            slack=slack,
            curvature=curvature,
            lipschitz=lipschitz,
            tolerance=jnp.clip(share, 0, ROUGHEST).astype(dtype),
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
