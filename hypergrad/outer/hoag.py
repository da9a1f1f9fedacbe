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
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.implicit import ImplicitDifferentiation, ImplicitState
from hypergrad.linear import vector
from hypergrad.outer import loops
from hypergrad.outer.base import (
    BREAKDOWN,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    check_reach,
    differentiable,
    first_state,
    known_error,
    may_move,
    move,
    outer_info,
    step_on,
)
from hypergrad.outer.batches import Batches
from hypergrad.outer.inexact import (
    adjoint_of,
    corrected_loss,
    require_fixed_losses,
    require_tolerances,
    with_tolerances,
)
from hypergrad.outer.quasi_newton import LimitedMemory, QuasiNewton, require_entrywise
from hypergrad.problem import BilevelProblem

# Relative error of adjoints under the adaptive schedule: the largest tolerance of its linear solve.
ADJOINT_ERROR = 0.01
# Its largest tolerance of the inner solve: what is left of the losses after the correction is of
# its square, and a metric is learnt from differences of hypergradients.
LARGEST_TOLERANCE = 1e-3
# Of the decrease expected of a step, what the adjoint's error may leave open at each of its ends.
SLACK_SHARE = 0.05
# What of the decrease that the slope promises a quasi-Newton step must bring.
SUFFICIENT_DECREASE = 0.01

SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "quadratic": lambda k: 0.1 / (k + 1.0) ** 2,
    "cubic": lambda k: 0.1 / (k + 1.0) ** 3,
    "exponential": lambda k: 0.1 * 0.9**k,
}


class HOAGState(OuterState):
    """The common state, in which all but `hparams` belongs to the last point kept, and more.

    - `estimator_state`: at the last point kept.
    - `value`: outer loss there.
    - `error`: estimated relative error of the hypergradient there.
    - `level`, `slack`: the loss by which steps are judged, and its uncertainty.
    - `pairs`: what the `metric` has learnt, if there is one.
    - `lipschitz`: `L`, the inverse step size.
    - `tolerance`: what the adaptive schedule asks for next, relative.
    - `tighten`: by how much failures have tightened the schedule.
    """

    estimator_state: Any
    value: Scalar
    error: Scalar
    level: Scalar
    slack: Scalar
    pairs: LimitedMemory | None
    lipschitz: Scalar
    tolerance: Scalar
    tighten: Scalar


class _Kept(eqx.Module):
    """The point that the next step starts from, with the loss by which it is judged."""

    estimator_state: ImplicitState
    gradient: PyTree
    level: Scalar
    slack: Scalar
    error: Scalar
    linear_residual: Scalar
    calls: Int[Array, ""]


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
                f"HOAG: tolerance: expected one of {[*SCHEDULES, 'adaptive']} or a function of the "
                f"step number, received {self.tolerance!r}."
            )
        require_entrywise(self, self.metric)

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> HOAGState:
        """See `OuterAlgorithm.init`."""
        require_fixed_losses(self, problem, batches)
        check_reach(self, problem, params, hparams, batches, key)
        state = self.estimator.init(problem, params, hparams, batches.linear, key=key)
        dtype = jax.eval_shape(
            lambda: problem.outer_loss(params, hparams, batches.outer, key)[0]
        ).dtype
        return first_state(
            HOAGState,
            params,
            hparams,
            estimator_state=state,
            value=jnp.full((), jnp.inf, dtype),
            error=jnp.full((), jnp.nan, dtype),
            level=jnp.full((), jnp.inf, dtype),
            slack=jnp.zeros((), dtype),
            pairs=None if self.metric is None else self.metric.init(differentiable(hparams)),
            lipschitz=jnp.ones((), dtype),
            tolerance=jnp.full((), LARGEST_TOLERANCE, dtype),
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
        tolerance, linear = self._tolerances(state)
        estimator = with_tolerances(self.estimator, tolerance * state.estimator_state.scale, linear)
        candidate = state.hparams
        response, fit = estimator.fit(
            problem, state.estimator_state, candidate, batches.linear, key=key
        )
        here = batches.restrict(problem, response.params, candidate, key)
        value, residual = here.outer_loss(), here.residual()
        level, doubt = self._judged(value, residual, state.estimator_state)

        first = jnp.isinf(state.value)
        jump = vector.sub(differentiable(candidate), differentiable(state.visited))
        slack = state.slack + doubt
        model = self._model(state, jump)
        finite = jnp.isfinite(level)
        success = finite & (first | (level <= model + slack))
        # What only the slack excuses is no evidence that longer steps would do.
        bolder = finite & (level <= model)
        keep = finite & (success | (level <= state.level + slack))

        def at_candidate() -> _Kept:
            estimate = estimator.hypergradient(
                problem, response, candidate, here.inner_batch, here.outer_batch, key=key
            )
            info = estimate.info
            level, doubt = self._judged(value, residual, estimate.state)
            measures = (level, doubt, known_error(info), info.linear_residual)
            level, doubt, error, unsolved = (jnp.asarray(x, value.dtype) for x in measures)
            # Of the linear system and of the error estimate; the mixed product, and a gradient.
            calls = info.iterations + info.error_calls + 2
            return _Kept(estimate.state, estimate.grad, level, doubt, error, unsolved, calls)

        point = loops.cond(keep, at_candidate, lambda: _last(state))
        grad_norm = vector.norm(point.gradient)
        good = jnp.isfinite(grad_norm) & (finite | ~first)

        factor = jnp.where(bolder, self.growth, jnp.where(success, 1.0, 2.0))
        start = self._first_lipschitz(point.gradient)
        lipschitz = jnp.where(first, start, state.lipschitz * factor)
        visited = vector.where(keep, candidate, state.visited)
        pairs, direction = state.pairs, vector.scale(-1, point.gradient)
        if self.metric is not None and pairs is not None:
            # A whole step of the quasi-Newton method is what is to be tried first.
            lipschitz = jnp.maximum(lipschitz, 1)
            step = vector.where(first, vector.zeros_like(jump), jump)
            change = vector.sub(point.gradient, state.hypergradient)
            pairs = vector.where(
                keep, self.metric.learn(pairs, step, change, point.gradient), pairs
            )
            free = may_move(visited, point.gradient, self.constraint)
            direction = self.metric.direction(pairs, point.gradient, free)
        moved = move(visited, vector.scale(1 / lipschitz, direction), self.constraint)

        new = HOAGState(
            step=state.step,
            hparams=moved,
            visited=visited,
            params=point.estimator_state.params,
            hypergradient=point.gradient,
            estimator_state=point.estimator_state,
            value=jnp.where(keep, value, state.value),
            error=point.error,
            level=point.level,
            slack=point.slack,
            pairs=pairs,
            lipschitz=lipschitz.astype(value.dtype),
            tolerance=_affordable(point, visited, moved).astype(value.dtype),
            tighten=(state.tighten * jnp.where(keep, 1, 0.5)).astype(value.dtype),
        )
        kept = step_on(state, new, good)
        info = outer_info(
            kept.value,
            kept.hypergradient,
            kept.visited,
            self.constraint,
            calls=fit.iterations + 1 + point.calls,
            error=point.error,
            inner_residual=fit.residual,
            linear_residual=point.linear_residual,
            inner_iterations=fit.iterations,
            step_size=1 / lipschitz,
            tolerance=tolerance,
            accepted=keep,
            stop=jnp.where(good, RUNNING, BREAKDOWN),
        )
        return kept, info

    def _tolerances(self, state: HOAGState) -> tuple[Scalar, Scalar]:
        """`ε_k` of the inner solve, and that of the linear one."""
        dtype = state.value.dtype
        if self.tolerance == "adaptive":
            asked = state.tolerance
        else:
            rule = SCHEDULES[self.tolerance] if isinstance(self.tolerance, str) else self.tolerance
            asked = jnp.asarray(rule(state.step), dtype)
        tolerance = jnp.maximum(asked * state.tighten, self.floor).astype(dtype)
        if self.tolerance != "adaptive":
            return tolerance, tolerance
        # A direction need not be as exact as the losses that a step is judged by.
        return tolerance, jnp.minimum(jnp.sqrt(tolerance), ADJOINT_ERROR)

    def _judged(self, value: Scalar, residual: PyTree, at: ImplicitState) -> tuple[Scalar, Scalar]:
        """The loss by which a step is judged, and its uncertainty."""
        adjoint = adjoint_of(at)
        if self.tolerance == "adaptive":
            return corrected_loss(value, adjoint, residual, ADJOINT_ERROR)
        return value, vector.norm(adjoint) * vector.norm(residual)

    def _model(self, state: HOAGState, jump: PyTree) -> Scalar:
        """The loss that a step must come down to for `L` to be large enough."""
        slope = vector.vdot(state.hypergradient, jump)
        if self.metric is not None:
            return state.level + SUFFICIENT_DECREASE * slope
        return state.level + slope + state.lipschitz / 2 * vector.vdot(jump, jump)

    def _first_lipschitz(self, gradient: PyTree) -> Scalar:
        norm = vector.norm(gradient)
        if self.step_size is not None:
            return jnp.asarray(1 / self.step_size, norm.dtype)
        if self.metric is not None:
            return jnp.ones_like(norm)
        return jnp.where(norm > 0, norm / jnp.sqrt(vector.size(gradient)), 1)


def _last(state: HOAGState) -> _Kept:
    """The point before, to which a rejected step returns."""
    unknown = jnp.full((), jnp.nan, state.value.dtype)
    return _Kept(
        state.estimator_state,
        state.hypergradient,
        state.level,
        2 * state.slack,  # a level that nothing comes up to is itself in doubt
        state.error,
        unknown,
        jnp.zeros((), jnp.int32),
    )


def _affordable(point: _Kept, visited: PyTree, moved: PyTree) -> Scalar:
    """The inner tolerance that the decrease expected of the next step allows."""
    ahead = vector.sub(differentiable(moved), differentiable(visited))
    decrease = jnp.abs(vector.vdot(point.gradient, ahead)) / 2
    sensitivity = vector.norm(adjoint_of(point.estimator_state)) * point.estimator_state.scale
    # Without an adjoint, as where its solve has failed, there is nothing to go by.
    share = jnp.where(sensitivity > 0, SLACK_SHARE * decrease / (ADJOINT_ERROR * sensitivity), 1)
    return jnp.clip(share, 0, LARGEST_TOLERANCE)
