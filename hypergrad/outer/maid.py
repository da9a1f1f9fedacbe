"""MAID: the accuracy of the solves and the step size both follow from error estimates.

Salehi, Mukherjee, Roberts & Ehrhardt, "An adaptively inexact first-order method for bilevel
optimization with application to hyperparameter learning" (2024). The hypergradient `z` is computed
more and more accurately until its error bound `ω` guarantees a descent direction,
`ω <= (1 − η) ‖z‖`, and no further. The line search compares bounds of the outer loss, so that an
accepted step decreases the true loss although only inexact ones are ever seen. Where the bounds
prove that the loss does not decrease, the step size is reduced; where they leave it open, too, a
few times, and then the accuracy is raised. After a success both are relaxed.

Two additions to the published method, both old in themselves. Where no constants are given, the
effect of the inner residual on the outer loss is not only bounded but subtracted,
`F(w) − ⟨q, ∂f/∂w⟩`: the adjoint is at hand, and much rougher inner solutions do (Pierce & Giles,
"Adjoint recovery of superconvergent functionals from PDE approximations", 2000). And with `secant`
the line search starts at `‖λ − λ'‖ / ‖z − z'‖` of the last two points, the geometric mean of the
two step sizes of Barzilai & Borwein, "Two-point step size gradient methods" (1988): doubled steps
find the scale as well, but then pay for a rejected one at every other step.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.linear import vector
from hypergrad.outer.base import (
    ACCURACY_LIMIT,
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
from hypergrad.outer.hoag import require_tolerances, with_tolerances
from hypergrad.outer.soba import outer_terms
from hypergrad.problem import BilevelProblem

# Share of `‖q‖ ‖∂f/∂w‖` that stays uncertain once the first-order effect is subtracted.
ROUGH = 0.1
# The step size that two points suggest is trusted within this factor of the published one.
REACH = 10.0


class Smoothness(eqx.Module):
    """Constants of a strongly convex inner problem, for bounds that hold without exception.

    With `ε = ‖∂f/∂w‖ / μ >= ‖w − w*‖` and `δ` the absolute residual of the linear system,

        ‖z − dF/dλ‖ <= c ε + (|C| / μ) δ + (L_g L_C / μ) ε²
        c = L_g |C| / μ + L_H |g| |C| / μ² + L_C |g| / μ + L_d

    **Arguments:**

    - `strong_convexity`: `μ`, smallest eigenvalue of `∂²f/∂w²` over all `w`; positive.
    - `mixed`: `|C|`, operator norm of `∂²f/∂w∂λ` at the computed point.
    - `outer`: `L_g`, Lipschitz constant of `∂F/∂w` in `w`.
    - `mixed_change`: `L_C`, Lipschitz constant of `∂²f/∂w∂λ` in `w`. Default 0.
    - `hessian_change`: `L_H`, Lipschitz constant of `∂²f/∂w²` in `w`. Default 0 (quadratic).
    - `direct_change`: `L_d`, Lipschitz constant of `∂F/∂λ` in `w`. Default 0.

    **Raises:** `ValueError` naming the first constant that is negative or not finite (for `μ`: not
    positive).
    """

    strong_convexity: float | Scalar
    mixed: float | Scalar
    outer: float | Scalar
    mixed_change: float | Scalar = 0.0
    hessian_change: float | Scalar = 0.0
    direct_change: float | Scalar = 0.0

    def __check_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, float | int):
                continue
            low = value > 0 if name == "strong_convexity" else value >= 0
            if not (low and math.isfinite(value)):
                kind = "positive" if name == "strong_convexity" else "non-negative"
                raise ValueError(f"Smoothness: {name} must be {kind} and finite, got {value}.")

    def hypergradient_error(self, residual: Scalar, linear: Scalar, cotangent: Scalar) -> Scalar:
        """The bound `ω`, from `‖∂f/∂w‖`, the absolute linear residual and `‖∂F/∂w‖`."""
        mu, mixed = self.strong_convexity, self.mixed
        distance = residual / mu
        slope = (
            self.outer * mixed / mu
            + self.hessian_change * cotangent * mixed / mu**2
            + self.mixed_change * cotangent / mu
            + self.direct_change
        )
        curved = self.outer * self.mixed_change / mu * distance**2
        return slope * distance + mixed / mu * linear + curved

    def value_error(self, residual: Scalar, cotangent: Scalar) -> Scalar:
        """Bound of the error of the outer loss, from `‖∂f/∂w‖` and `‖∂F/∂w‖`."""
        distance = residual / self.strong_convexity
        return cotangent * distance + self.outer / 2 * distance**2


class MAIDState(OuterState):
    """The common state, the tolerances and the step size.

    - `estimator_state`: at `hparams`.
    - `before`: where the last move began; `hypergradient` is the one there.
    - `inner_tolerance`: bound of `‖∂f/∂w‖`, relative to the scale at the start.
    - `linear_tolerance`: bound of the relative residual of the linear system.
    - `step_size`: what the next line search tries first, unless `secant`.
    """

    estimator_state: Any
    before: PyTree
    inner_tolerance: Scalar
    linear_tolerance: Scalar
    step_size: Scalar


class _Point(eqx.Module):
    """A computed hypergradient and what is known of its error."""

    estimator_state: Any
    gradient: PyTree
    value: Scalar
    lower: Scalar
    upper: Scalar
    error: Scalar
    adjoint: PyTree
    inner_residual: Scalar
    linear_residual: Scalar
    good: Array


class _Effort(eqx.Module):
    calls: Int[Array, ""]
    iterations: Int[Array, ""]


class _Search(eqx.Module):
    """A line search.

    - `size`: the step size to try next, or found.
    - `first`: the largest one that has not been refuted.
    - `attempts`, `open`: how many were tried, and how many of them left undecided.
    - `value`, `estimator_state`: the last point tried.
    """

    size: Scalar
    first: Scalar
    attempts: Int[Array, ""]
    open: Int[Array, ""]
    accepted: Array
    value: Scalar
    estimator_state: Any
    effort: _Effort


class MAID(OuterAlgorithm):
    """Adaptively inexact descent with a line search on inexact values.

    Data are fixed: use all of them in every step. One step is one accepted move, or the finding
    that none can be certified (status "accuracy_limit": the estimate of the error is then the
    certificate of stationarity).

    **Arguments:**

    - `estimator`: an `ImplicitDifferentiation` whose inner and linear solver have a `tol`; both are
      chosen by the algorithm.
    - `smoothness`: the problem's constants, or a function `(params, hparams) -> Smoothness`; the
      bounds are then strict. `None` (default) takes the estimator's own error estimate for the
      hypergradient; of the outer loss it subtracts the first-order effect of the inner residual,
      `⟨q, ∂f/∂w⟩`, and leaves half of that and a tenth of `‖q‖ ‖∂f/∂w‖` uncertain.
    - `inner_tolerance`: first `‖∂f/∂w‖`, relative to the scale at the start. Default 0.1.
    - `linear_tolerance`: first relative residual of the linear system. Default 0.1.
    - `step_size`: first step size tried. Default 0.1.
    - `eta`: the error must stay below `(1 − eta) ‖z‖`. Default 0.5.
    - `decrease`: share of `step ‖z‖²` by which the loss must fall. Default 1e-4.
    - `backtrack`: factor of a rejected step size. Default 0.5.
    - `backtracks`: undecided step sizes before the accuracy is raised. Default 2.
    - `growth`: factor of the step size after a success at the first attempt. Default 2.
    - `tighten`, `relax`: factors of both tolerances when the accuracy is too poor, and after a
      success. Defaults 0.5 and 1.25.
    - `secant`: begin the line search at the step size that the last two points suggest. Far fewer
      steps where the outer problem is ill-conditioned, but their number depends more on where one
      starts. Default `False`, as published.
    - `refinements`: how often the accuracy is raised within one step. Default 40.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is relative to the scale at the start, the tolerance likewise.
    """

    estimator: ImplicitDifferentiation
    smoothness: Smoothness | Callable[[PyTree, PyTree], Smoothness] | None = None
    inner_tolerance: float | Scalar = 0.1
    linear_tolerance: float | Scalar = 0.1
    step_size: float | Scalar = 0.1
    eta: float | Scalar = 0.5
    decrease: float | Scalar = 1e-4
    backtrack: float | Scalar = 0.5
    backtracks: int | Int[Array, ""] = 2
    growth: float | Scalar = 2.0
    secant: bool = eqx.field(static=True, default=False)
    tighten: float | Scalar = 0.5
    relax: float | Scalar = 1.25
    refinements: int | Int[Array, ""] = 40
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_tolerances(self, self.estimator)
        for name in ("eta", "backtrack", "tighten"):
            value = getattr(self, name)
            if isinstance(value, float | int) and not 0 < value < 1:
                raise ValueError(f"MAID: {name} must lie between 0 and 1, got {value}.")

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> MAIDState:
        """See `OuterAlgorithm.init`."""
        check_reach(self, problem, params, hparams, batches, key)
        state = self.estimator.init(problem, params, hparams, batches.linear, key=key)
        dtype = state.scale.dtype
        return MAIDState(
            step=jnp.zeros((), jnp.int32),
            hparams=hparams,
            visited=hparams,
            params=params,
            hypergradient=jax.tree.map(jnp.zeros_like, differentiable(hparams)),
            estimator_state=state,
            before=differentiable(hparams),
            inner_tolerance=jnp.asarray(self.inner_tolerance, dtype),
            linear_tolerance=jnp.asarray(self.linear_tolerance, dtype),
            step_size=jnp.asarray(self.step_size, dtype),
        )

    def step(
        self,
        problem: BilevelProblem,
        state: MAIDState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[MAIDState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        dtype = state.step_size.dtype
        scale = state.estimator_state.scale
        hparams = state.hparams
        static = eqx.filter(state.estimator_state, eqx.is_array, inverse=True)
        eps = jnp.finfo(dtype).eps
        # One more gradient of the inner loss at each point.
        correction = 1 if self.smoothness is None else 0

        def fit(estimator_state: Any, lam: PyTree, inner: Scalar, linear: Scalar) -> tuple:
            estimator = with_tolerances(self.estimator, inner * scale, linear)
            args = (problem, estimator_state, lam, batches.linear)
            response, info = estimator.fit(*args, key=key)
            value, outer = outer_terms(batches.restrict(problem, response.params, lam, key))
            cotangent = vector.norm(outer.params)
            return estimator, response, info, value.astype(dtype), cotangent

        def bounds(
            response: Any,
            lam: PyTree,
            value: Scalar,
            residual: Scalar,
            cotangent: Scalar,
            adjoint: PyTree,
        ) -> tuple[Scalar, Scalar]:
            """Between them lies the outer loss at the best response."""
            constants = self._constants(response.params, lam)
            if constants is None:
                gradient = problem.residual(response.params, lam, batches.linear, key)
                effect = vector.vdot(adjoint, gradient)
                value = value - effect
                error = ROUGH * vector.norm(adjoint) * residual + jnp.abs(effect) / 2
            else:
                error = constants.value_error(residual, cotangent)
            return (value - error).astype(dtype), (value + error).astype(dtype)

        def compute(estimator_state: Any, inner: Scalar, linear: Scalar) -> tuple:
            estimator, response, info, value, cotangent = fit(
                estimator_state, hparams, inner, linear
            )
            estimate = estimator.hypergradient(
                problem, response, hparams, batches.linear, batches.outer, key=key
            )
            residual = info.residual * scale
            norm = vector.norm(estimate.grad)
            adjoint = vector.scale(estimate.state.cotangent_size, estimate.state.adjoint)
            constants = self._constants(response.params, hparams)
            if constants is None:
                error = estimate.info.error * norm
            else:
                linear_residual = estimate.info.linear_residual * cotangent
                error = constants.hypergradient_error(residual, linear_residual, cotangent)
            point = _Point(
                eqx.filter(estimate.state, eqx.is_array),
                estimate.grad,
                value,
                *bounds(response, hparams, value, residual, cotangent, adjoint),
                error.astype(dtype),
                adjoint,
                info.residual.astype(dtype),
                estimate.info.linear_residual.astype(dtype),
                error <= (1 - self.eta) * norm,
            )
            effort = _Effort(
                (info.iterations + estimate.info.iterations + 3 + correction).astype(jnp.int32),
                jnp.asarray(info.iterations, jnp.int32),
            )
            return point, effort

        def search(point: _Point, start: Scalar, inner: Scalar, linear: Scalar) -> _Search:
            """Backtrack until a decrease is certain."""
            best = eqx.combine(point.estimator_state, static)

            def attempt(c: _Search) -> _Search:
                candidate = move(hparams, vector.scale(-c.size, point.gradient), self.constraint)
                jump = vector.norm(vector.sub(differentiable(candidate), differentiable(hparams)))
                _, response, info, value, cotangent = fit(
                    eqx.combine(c.estimator_state, static), candidate, inner, linear
                )
                residual = info.residual * scale
                lower, upper = bounds(
                    response, candidate, value, residual, cotangent, point.adjoint
                )
                needed = self.decrease * jump**2 / c.size
                accepted = upper <= point.lower - needed
                refuted = ~(lower <= point.upper - needed)
                smaller = (c.size * self.backtrack).astype(dtype)
                # A diverged trial must not be where the next one starts.
                sound = vector.all_finite(differentiable(response.params))
                response = select(sound, response, best)
                return _Search(
                    size=jnp.where(accepted, c.size, smaller),
                    first=jnp.where(refuted, smaller, c.first),
                    attempts=c.attempts + 1,
                    open=c.open + jnp.where(refuted, 0, 1),
                    accepted=accepted,
                    value=value,
                    estimator_state=eqx.filter(response, eqx.is_array),
                    effort=_Effort(
                        c.effort.calls + info.iterations + 1 + correction,
                        c.effort.iterations + info.iterations,
                    ),
                )

            return jax.lax.while_loop(
                lambda c: ~c.accepted & (c.open < self.backtracks) & (c.attempts < 100),
                attempt,
                _no_search(start, point),
            )

        def unfinished(carry: tuple) -> Array:
            done, tries, *_ = carry
            return ~done & (tries <= self.refinements)

        def body(carry: tuple) -> tuple:
            _, tries, inner, linear, point, found, effort = carry
            estimator_state = eqx.combine(point.estimator_state, static)
            point, spent = compute(estimator_state, inner, linear)
            effort = jax.tree.map(jnp.add, effort, spent)
            size = found.first
            if self.secant:
                size = jnp.where(tries == 0, _secant_size(state, point.gradient), size)
            found = jax.lax.cond(
                point.good,
                lambda: search(point, size, inner, linear),
                lambda: _no_search(size, point),
            )
            effort = jax.tree.map(jnp.add, effort, found.effort)
            accepted = found.accepted
            factor = jnp.where(accepted, self.relax, self.tighten)
            # Beyond rounding error no accuracy can be bought.
            exhausted = (inner < eps) & (linear < eps)
            exhausted |= point.upper - point.lower <= eps * jnp.abs(point.value)
            return (
                accepted | exhausted | ~jnp.isfinite(point.value),
                tries + 1,
                jnp.clip(inner * factor, eps / 4, 1.0).astype(dtype),
                jnp.clip(linear * factor, eps / 4, 0.5).astype(dtype),
                point,
                found,
                effort,
            )

        unknown = jnp.full((), jnp.nan, dtype)
        nowhere = _Point(
            eqx.filter(state.estimator_state, eqx.is_array),
            state.hypergradient,
            *(unknown,) * 4,
            vector.zeros_like(state.estimator_state.adjoint),
            *(unknown,) * 2,
            jnp.asarray(False),
        )
        nothing = _no_search(state.step_size, nowhere)
        start = (
            jnp.asarray(False),
            jnp.zeros((), jnp.int32),
            state.inner_tolerance,
            state.linear_tolerance,
            nowhere,
            nothing,
            nothing.effort,
        )
        _, _, inner, linear, point, found, effort = jax.lax.while_loop(unfinished, body, start)
        accepted = found.accepted

        gradient = point.gradient
        moved = move(hparams, vector.scale(-found.size, gradient), self.constraint)
        there = eqx.combine(found.estimator_state, static)
        here = eqx.combine(point.estimator_state, static)
        estimator_state = select(accepted, there, here)
        reached = select(accepted, moved, hparams)
        finite = jnp.isfinite(point.value) & vector.all_finite(gradient)
        new = MAIDState(
            step=state.step + 1,
            hparams=reached,
            visited=reached,
            params=estimator_state.params,
            hypergradient=gradient,
            estimator_state=estimator_state,
            before=differentiable(hparams),
            inner_tolerance=inner,
            linear_tolerance=linear,
            step_size=jnp.where(
                accepted,
                found.size * jnp.where(found.attempts == 1, self.growth, 1.0),
                state.step_size,
            ).astype(dtype),
        )
        kept = eqx.tree_at(lambda s: s.step, state, state.step + 1)
        norm = vector.norm(gradient)
        info = outer_info(
            jnp.where(accepted, found.value, point.value),
            gradient,
            hparams,
            self.constraint,
            calls=effort.calls,
            error=point.error / jnp.where(norm > 0, norm, 1),
            inner_residual=point.inner_residual,
            linear_residual=point.linear_residual,
            inner_iterations=effort.iterations,
            step_size=found.size,
            tolerance=inner,
            accepted=accepted,
            stop=jnp.where(finite, jnp.where(accepted, RUNNING, ACCURACY_LIMIT), BREAKDOWN),
        )
        return select(finite, new, kept), info

    def _constants(self, params: PyTree, hparams: PyTree) -> Smoothness | None:
        if self.smoothness is None or isinstance(self.smoothness, Smoothness):
            return self.smoothness
        return self.smoothness(params, hparams)


def _secant_size(state: MAIDState, gradient: PyTree) -> Scalar:
    """The step size that the last move suggests, if the curvature along it was positive."""
    jump = vector.sub(differentiable(state.hparams), state.before)
    change = vector.sub(gradient, state.hypergradient)
    size = vector.norm(jump) / vector.norm(change)
    size = jnp.clip(size, state.step_size / REACH, state.step_size * REACH)
    return jnp.where(vector.vdot(jump, change) > 0, size, state.step_size).astype(
        state.step_size.dtype
    )


def _no_search(size: Scalar, point: _Point) -> _Search:
    zero = jnp.zeros((), jnp.int32)
    return _Search(
        size=size,
        first=size,
        attempts=zero,
        open=zero,
        accepted=jnp.asarray(False),
        value=point.value,
        estimator_state=point.estimator_state,
        effort=_Effort(zero, zero),
    )
