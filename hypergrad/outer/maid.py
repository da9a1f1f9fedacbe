"""MAID: the accuracy of the solves and the step size both follow from error estimates.

Salehi, Mukherjee, Roberts & Ehrhardt, "An adaptively inexact first-order method for bilevel
optimization with application to hyperparameter learning" (2024). The hypergradient `z` is computed
more and more accurately until its error bound `ω` guarantees a descent direction,
`ω <= (1 − η) ‖z‖`, and no further. The line search compares bounds of the outer loss, so that an
accepted step decreases the true loss although only inexact ones are ever seen. Where the bounds
prove that the loss does not decrease, the step size is reduced; where they leave it open, too, a
few times, and then the accuracy is raised. After a success both are relaxed.

Four additions to the published method. An estimate of the error costs more than the hypergradient:
it is made for every fifth, and anew where it does not allow for a step; between, the error is taken
to be proportional to the tolerances. Where no constants are given, the effect of the inner
residual on the outer loss is not only bounded but subtracted, `F(w) − ⟨q, ∂f/∂w⟩`: the adjoint is
at hand, and much rougher inner solutions do (Pierce & Giles, "Adjoint recovery of superconvergent
functionals from PDE approximations", 2000). A hypergradient that is certified stays so: where only
the losses were too rough, only they are computed anew, without a linear system. And with
`metric=QuasiNewton()` the search goes along `d = −B z`, whose descent is certain if
`ω ‖d‖ <= (1 − η) |⟨z, d⟩|`, the published condition for `d = −z`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.linear import vector
from hypergrad.outer import loops
from hypergrad.outer.base import (
    ACCURACY_LIMIT,
    BREAKDOWN,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    check_reach,
    differentiable,
    first_state,
    may_move,
    move,
    outer_info,
    step_on,
)
from hypergrad.outer.batches import Batches
from hypergrad.outer.certified import Accuracy, CertifiedPoint, Certifier, Judgement
from hypergrad.outer.inexact import require_fixed_losses, require_tolerances
from hypergrad.outer.line_search import LineSearch, backtrack, not_searched
from hypergrad.outer.quasi_newton import LimitedMemory, QuasiNewton, require_entrywise
from hypergrad.outer.smoothness import Smoothness
from hypergrad.problem import BilevelProblem

# Line searches along one certified hypergradient. An estimate may be wrong, and then no search
# along it succeeds. More than two save a little, and the cost depends more on the start.
SEARCHES = 2


class MAIDState(OuterState):
    """The common state, the tolerances and the step size.

    - `estimator_state`: at `hparams`.
    - `before`: where the last move began; `hypergradient` is the one there.
    - `pairs`: what the `metric` had learnt there, if there is one.
    - `accuracy`: of the next solves.
    - `judgement`: the last estimate of a hypergradient's error.
    - `step_size`: what the next line search tries first.
    """

    estimator_state: Any
    before: PyTree
    pairs: LimitedMemory | None
    accuracy: Accuracy
    judgement: Judgement
    step_size: Scalar


class _Progress(eqx.Module):
    """One step of the algorithm while its accuracy is being found.

    - `refinements`: how often the accuracy was raised.
    - `accuracy`: of the next attempt.
    - `point`, `direction`, `search`: the last hypergradient, where to go by it, and the last line
      search there.
    - `descends`: the true outer loss is certain to fall in that direction.
    - `calls`, `iterations`: gradient-like evaluations and inner iterations spent.
    - `done`: a step was accepted, or no accuracy can be bought any more.
    """

    refinements: Int[Array, ""]
    accuracy: Accuracy
    point: CertifiedPoint
    direction: PyTree
    descends: Array
    search: LineSearch
    calls: Int[Array, ""]
    iterations: Int[Array, ""]
    done: Array


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
    - `decrease`: share of what the slope promises by which the loss must fall. Default 1e-4.
    - `backtrack`: factor of a rejected step size. Default 0.5.
    - `backtracks`: undecided step sizes before the accuracy is raised. Default 2.
    - `growth`: factor of the step size after a success at the first attempt. Default 2.
    - `tighten`, `relax`: factors of both tolerances when the accuracy is too poor, and after a
      success. Defaults 0.5 and 1.25.
    - `metric`: `QuasiNewton()` for steps `λ ← P(λ − a B z)` with `a <= 1` and an inverse Hessian
      `B` learnt on the way, as in `HOAG`: a fraction of the steps where hyperparameters differ in
      what they do. It needs sets that hold entry by entry (`Box`). Default `None`, the gradient,
      as published.
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
    metric: QuasiNewton | None = None
    tighten: float | Scalar = 0.5
    relax: float | Scalar = 1.25
    refinements: int | Int[Array, ""] = 40
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_tolerances(self, self.estimator)
        require_entrywise(self, self.metric)
        for name in ("eta", "backtrack", "tighten"):
            value = getattr(self, name)
            if isinstance(value, float | int) and not 0 < value < 1:
                raise ValueError(
                    f"MAID: {name}: expected a number between 0 and 1, received {value}."
                )
        if self.smoothness is None and self.estimator.error_estimate is None:
            raise ValueError(
                "MAID needs to know the error of its hypergradients: expected `smoothness`, or an "
                "estimator with an error estimate, received error_estimate=False."
            )

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> MAIDState:
        """See `OuterAlgorithm.init`."""
        require_fixed_losses(self, problem, batches)
        check_reach(self, problem, params, hparams, batches, key)
        state = self.estimator.init(problem, params, hparams, batches.linear, key=key)
        dtype = state.scale.dtype
        first = (self.inner_tolerance, self.linear_tolerance, self.step_size)
        inner, linear, step_size = (jnp.asarray(x, dtype) for x in first)
        pairs = None
        if self.metric is not None:
            pairs = self.metric.init(differentiable(hparams))
            step_size = jnp.minimum(step_size, 1)
        return first_state(
            MAIDState,
            params,
            hparams,
            estimator_state=state,
            before=differentiable(hparams),
            pairs=pairs,
            accuracy=Accuracy(inner, linear),
            judgement=Judgement.none(Accuracy(inner, linear)),
            step_size=step_size,
        )

    def step(
        self,
        problem: BilevelProblem,
        state: MAIDState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[MAIDState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        certifier = Certifier(
            self.estimator, self.smoothness, problem, batches, key, state.estimator_state.scale
        )
        end = loops.while_loop(
            lambda now: ~now.done & (now.refinements <= self.refinements),
            lambda now: self._attempt(certifier, state, now),
            self._start(state),
        )
        point, search, accepted = end.point, end.search, end.search.accepted
        moved = move(state.hparams, vector.scale(search.size, end.direction), self.constraint)
        estimator_state = vector.where(accepted, search.estimator_state, point.estimator_state)
        reached = vector.where(accepted, moved, state.hparams)
        finite = jnp.isfinite(point.value) & vector.all_finite(point.gradient)
        grown = search.size * jnp.where(search.attempts == 1, self.growth, 1.0)
        if self.metric is not None:
            # A whole step of the quasi-Newton method is what is to be tried first.
            grown = jnp.minimum(grown, 1)
        new = MAIDState(
            step=state.step + 1,
            hparams=reached,
            visited=reached,
            params=estimator_state.params,
            hypergradient=point.gradient,
            estimator_state=estimator_state,
            before=differentiable(state.hparams),
            pairs=self._pairs(state, point.gradient),
            accuracy=end.accuracy,
            judgement=point.judgement,
            step_size=jnp.where(accepted, grown, state.step_size).astype(state.step_size.dtype),
        )
        info = outer_info(
            jnp.where(accepted, search.value, point.value),
            point.gradient,
            state.hparams,
            self.constraint,
            calls=end.calls,
            error=point.relative_error,
            inner_residual=point.inner_residual,
            linear_residual=point.linear_residual,
            inner_iterations=end.iterations,
            step_size=search.size,
            tolerance=end.accuracy.inner,
            accepted=accepted,
            stop=jnp.where(finite, jnp.where(accepted, RUNNING, ACCURACY_LIMIT), BREAKDOWN),
        )
        return step_on(state, new, finite), info

    def _start(self, state: MAIDState) -> _Progress:
        zero = jnp.zeros((), jnp.int32)
        point = CertifiedPoint.unknown(state.estimator_state, state.hypergradient, state.judgement)
        nowhere, no = vector.zeros_like(point.gradient), jnp.asarray(False)
        search = not_searched(state.step_size, point)
        return _Progress(zero, state.accuracy, point, nowhere, no, search, zero, zero, no)

    def _attempt(self, certifier: Certifier, state: MAIDState, now: _Progress) -> _Progress:
        """A hypergradient or a better loss, a line search if it descends, the next accuracy."""
        hparams, known = state.hparams, now.point
        renewed = ~now.descends | (now.refinements % SEARCHES == 0)
        serves = known.judgement.serves(now.accuracy, 1 - self.eta)
        anew = (now.refinements > 0) | ~serves
        point = loops.cond(
            renewed,
            lambda: certifier.hypergradient(
                known.estimator_state, hparams, now.accuracy, known.judgement, anew
            ),
            lambda: known.judged_anew(
                certifier.loss(known.estimator_state, hparams, now.accuracy, known.adjoint)
            ),
        )
        direction, size = self._direction(state, point.gradient), now.search.first
        promised = -vector.vdot(point.gradient, direction)
        descends = point.error * vector.norm(direction) <= (1 - self.eta) * promised
        search = loops.cond(
            descends,
            lambda: backtrack(
                certifier,
                point,
                hparams,
                lambda size: move(hparams, vector.scale(size, direction), self.constraint),
                size,
                now.accuracy,
                decrease=self.decrease,
                factor=self.backtrack,
                undecided=self.backtracks,
            ),
            lambda: not_searched(size, point),
        )
        # Beyond rounding error no accuracy can be bought.
        eps = jnp.finfo(size.dtype).eps
        rounded = point.upper - point.lower <= eps * abs(point.value)
        exhausted = now.accuracy.exhausted(descends) | rounded
        # The next search has another hypergradient if this one does not descend, or has not helped.
        another = ~descends | ((now.refinements + 1) % SEARCHES == 0)
        inner = jnp.where(search.accepted, self.relax, self.tighten)
        linear = jnp.where(search.accepted | another, inner, 1)
        return _Progress(
            refinements=now.refinements + 1,
            accuracy=now.accuracy.scaled(inner, linear),
            point=point,
            direction=direction,
            descends=descends,
            search=search,
            calls=now.calls + point.calls + search.calls,
            iterations=now.iterations + point.iterations + search.iterations,
            done=search.accepted | exhausted | ~jnp.isfinite(point.value),
        )

    def _pairs(self, state: MAIDState, gradient: PyTree) -> LimitedMemory | None:
        """What the metric has learnt at `state.hparams`."""
        if self.metric is None or state.pairs is None:
            return None
        jump = vector.sub(differentiable(state.hparams), state.before)
        change = vector.sub(gradient, state.hypergradient)
        return self.metric.learn(state.pairs, jump, change, gradient)

    def _direction(self, state: MAIDState, gradient: PyTree) -> PyTree:
        """Where to go from `state.hparams`."""
        pairs = self._pairs(state, gradient)
        if self.metric is None or pairs is None:
            return vector.scale(-1, gradient)
        free = may_move(state.hparams, gradient, self.constraint)
        return self.metric.direction(pairs, gradient, free)
