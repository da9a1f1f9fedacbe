"""Dual ascent: params descend the Lagrangian, multipliers ascend along the excess.

    w  <-  a step, or many, down L₀(w) + Σ λ_k (L_k(w) − c_k)
    λ  <-  [λ + η e + κ (ξ − ξ₋)]₊,   e = L(w) − c,   ξ = ν ξ₋ + (1 − ν) e

The second term is that of a proportional-integral controller (Sohrabi, Ramirez, Zhang,
Lacoste-Julien and Gallego-Posada, "On PI controllers for updating Lagrange multipliers in
constrained optimization", ICML 2024): it damps the oscillation that dual ascent is prone to.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_positive
from hypergrad.inner import as_inner_solver
from hypergrad.linear import vector
from hypergrad.outer.base import (
    BREAKDOWN,
    INFEASIBLE,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    differentiable,
    first_state,
    outer_info,
    step_on,
)
from hypergrad.outer.batches import Batches
from hypergrad.outer.constrained import ConstrainedProblem
from hypergrad.outer.constraints import project
from hypergrad.problem import BilevelProblem

# Averages over steps weigh step t by about t²: what the first steps saw is soon forgotten.
_FORGETTING = 3.0


class NuPI(eqx.Module):
    """Momentum of the multipliers: proportional to the change of the excess, smoothed.

    **Arguments:**

    - `proportional`: `κ`, the gain. With `κ` equal to the dual step and no smoothing this is
      optimistic gradient ascent; more damps more, until it follows noise.
    - `smoothing`: `ν` in [0, 1): the excess is averaged over about `1 / (1 − ν)` steps first.
      Default 0.
    """

    proportional: float | Scalar
    smoothing: float | Scalar = 0.0

    def __check_init__(self) -> None:
        if isinstance(self.smoothing, float | int) and not 0 <= self.smoothing < 1:
            raise ValueError(
                f"NuPI: smoothing: expected a number in [0, 1), received {self.smoothing!r}."
            )


class DualAscentState(OuterState):
    """The common state, and what the method remembers.

    - `inner_state`: that of the inner solver (momenta).
    - `smoothed`: `ξ`, like the multipliers; `None` without momentum.
    - `support_slope`, `support_offset`: an affine function of the params that lies below the
      weighted constraints (`DualAscent.reach`); `None` if infeasibility is not detected.
    """

    inner_state: PyTree
    smoothed: PyTree
    support_slope: PyTree
    support_offset: Scalar | None


class DualAscentInfo(OuterInfo):
    """An `OuterInfo` with three columns more.

    - `objective`: of the params, on the step's outer batch.
    - `violation`: the largest excess over a bound (measured, if the problem measures), at least 0.
    - `reach`: the distance from the params within which no point meets the constraints, as far as
      is known: 0 where nothing is known, infinite where no point at all does.
    """

    objective: Scalar
    violation: Scalar
    reach: Scalar


class DualAscent(OuterAlgorithm):
    """Params and multipliers of a `ConstrainedProblem` in turn.

    **Arguments:**

    - `inner`: what moves the params, whatever `as_inner_solver` takes. A single loop is
      `OptaxSolver(optax.adam(1e-3), steps=1)`; a solver that solves makes the steps those of exact
      dual ascent, along the gradient of the dual function. Momenta are kept from step to step.
    - `step`: `η > 0`, the step of the multipliers. Too large: oscillation, which `momentum` damps.
    - `momentum`: a `NuPI`, or `None` (plain ascent, the default).
    - `reach`: give up as "infeasible" when no point within `reach` times `max(1, ‖params‖)` meets
      the constraints. Constraints weighted by their multipliers lie above their tangents; the
      average of the tangents seen is a proof for constraints that are convex in the params, and
      good evidence for others. It costs one more gradient a step. Default 100; `None` never gives
      up.
    - `constraint`: a further feasible set of the multipliers, see `hypergrad.outer.project`; that
      those of inequalities are not negative is seen to by the problem.

    A step moves the params first and then the multipliers by what the constraints are at the new
    params: `OuterInfo.value` belongs to the state's `params` exactly. Only the multipliers of the
    batch's examples move, if the problem has `rows`. `stationarity` is `‖λ − [λ + e]₊‖`: feasible,
    and complementary, to that accuracy; `inner_residual` is the inner solver's own, absolute.
    """

    inner: Any
    step_size: float | Scalar
    momentum: NuPI | None
    reach: float | Scalar | None
    constraint: PyTree = None

    def __init__(
        self,
        inner: Any,
        step: float | Scalar,
        *,
        momentum: NuPI | None = None,
        reach: float | Scalar | None = 100.0,
        constraint: PyTree = None,
    ) -> None:
        require_positive("DualAscent", "step", step)
        require_positive("DualAscent", "reach", reach)
        if momentum is not None and not isinstance(momentum, NuPI):
            raise ValueError(
                f"DualAscent: momentum: expected a NuPI or None, received {momentum!r}."
            )
        self.inner = as_inner_solver(inner)
        self.step_size = step
        self.momentum = momentum
        self.reach = reach
        self.constraint = constraint

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> DualAscentState:
        """See `OuterAlgorithm.init`.

        **Raises:** `ValueError` for a problem that is no `ConstrainedProblem`, or multipliers that
        do not fit its constraints.
        """
        problem = _constrained(problem)
        eqx.filter_eval_shape(problem.inner_loss, params, hparams, batches.inner(), key)
        w = differentiable(params)
        sought = self.reach is not None and problem.lagrangian.slack is None
        dtype = jax.tree.leaves(w)[0].dtype
        return first_state(
            DualAscentState,
            params,
            hparams,
            inner_state=self.inner.init(problem, params),
            smoothed=None if self.momentum is None else vector.zeros_like(hparams),
            support_slope=vector.zeros_like(w) if sought else None,
            support_offset=jnp.zeros((), dtype) if sought else None,
        )

    def step(
        self,
        problem: BilevelProblem,
        state: DualAscentState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[DualAscentState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        problem = _constrained(problem)
        train, judge = (None, None) if key is None else jax.random.split(key)
        solution = self.inner.run(
            problem,
            state.params,
            state.hparams,
            batches.inner(),
            state=state.inner_state,
            key=train,
        )
        params, data = solution.params, batches.outer
        objective, measured = problem.parts(params, data, judge, measured=True)
        violation = problem.violation(measured)
        own = problem.lagrangian.of_batch(state.hparams, data)
        excess = problem.lagrangian.after_slack(measured, own)

        moved, smoothed = self._ascended(own, excess, state, problem, data)
        hparams = problem.lagrangian.into_rows(state.hparams, moved, data)
        hparams = project(self.constraint, problem.project_hparams(hparams))
        slope, offset, distance = self._support(problem, state, params, own, data, judge)

        good = jnp.isfinite(objective) & jnp.isfinite(violation)
        good = good & vector.all_finite((differentiable(params), differentiable(hparams)))
        hopeless = jnp.asarray(False)
        if slope is not None and self.reach is not None:
            size = jnp.maximum(vector.norm(differentiable(params)), 1)
            hopeless = (distance >= self.reach * size) & (violation > problem.tolerance)
        new = DualAscentState(
            step=state.step + 1,
            hparams=hparams,
            visited=state.hparams,
            params=params,
            hypergradient=_spread(problem, state.hparams, vector.scale(-1.0, excess), data),
            inner_state=solution.state,
            smoothed=smoothed,
            support_slope=slope,
            support_offset=offset,
        )
        stop = jnp.where(hopeless, INFEASIBLE, RUNNING)
        info = outer_info(
            problem.judged(objective, violation),
            new.hypergradient,
            state.hparams,
            None,
            calls=solution.iterations + 1 + (0 if slope is None else 1),
            inner_residual=solution.residual,
            inner_iterations=solution.iterations,
            step_size=self.step_size,
            accepted=good,
            stop=jnp.where(good, stop, BREAKDOWN),
        )
        unit = problem.project_hparams(vector.axpy(1.0, excess, own))
        still = vector.norm(vector.sub(own, unit)).astype(info.value.dtype)
        columns = {**vars(info), "stationarity": still, "objective": objective}
        columns |= {"violation": violation.astype(info.value.dtype), "reach": distance}
        return step_on(state, new, good), DualAscentInfo(**columns)

    def _ascended(
        self,
        own: PyTree,
        excess: PyTree,
        state: DualAscentState,
        problem: ConstrainedProblem,
        data: PyTree,
    ) -> tuple[PyTree, PyTree]:
        """The batch's multipliers before projection, and all of `ξ`."""
        moved = vector.axpy(self.step_size, excess, own)
        if self.momentum is None:
            return moved, None
        before = problem.lagrangian.of_batch(state.smoothed, data)
        change = vector.scale(1.0 - self.momentum.smoothing, vector.sub(excess, before))
        moved = vector.axpy(self.momentum.proportional, change, moved)
        after = vector.axpy(1.0, change, before)
        return moved, problem.lagrangian.into_rows(state.smoothed, after, data)

    def _support(
        self,
        problem: ConstrainedProblem,
        state: DualAscentState,
        params: PyTree,
        own: PyTree,
        data: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, Scalar | None, Scalar]:
        """The affine function below the weighted constraints, and how far it stays positive.

        With weights `u = λ / Σ|λ|` every feasible point has `Σ u e <= 0`, and of convex constraints
        `Σ u e(w') >= Σ u e(w) + ⟨slope, w' − w⟩`. Means over steps keep both.
        """
        dtype = jax.tree.leaves(differentiable(params))[0].dtype
        nothing = jnp.zeros((), dtype)
        if state.support_offset is None:
            return None, None, nothing
        total = sum(jnp.sum(jnp.abs(m)) for m in jax.tree.leaves(own))
        share = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
        w, static = eqx.partition(params, eqx.is_inexact_array)

        def weighted(w: PyTree) -> Scalar:
            _, excess = problem.parts(eqx.combine(w, static), data, key)
            return vector.vdot(vector.scale(share, own), excess).astype(dtype)

        value, gradient = jax.value_and_grad(weighted)(w)
        weight = _FORGETTING / (state.step + _FORGETTING)
        slope = vector.axpy(weight, vector.sub(gradient, state.support_slope), state.support_slope)
        offset = value - vector.vdot(gradient, w)
        offset = state.support_offset + weight * (offset - state.support_offset)
        above = offset + vector.vdot(slope, w)
        length = vector.norm(slope)
        distance = jnp.where(length > 0, above / jnp.where(length > 0, length, 1), jnp.inf)
        distance = jnp.where(above > problem.tolerance, distance, 0)
        return slope, offset.astype(dtype), distance.astype(dtype)


def _constrained(problem: BilevelProblem) -> ConstrainedProblem:
    if not isinstance(problem, ConstrainedProblem):
        raise ValueError(
            "DualAscent: problem: expected a ConstrainedProblem, received a "
            f"{type(problem).__name__}."
        )
    return problem


def _spread(problem: ConstrainedProblem, all_of: PyTree, of_batch: PyTree, data: PyTree) -> PyTree:
    """Numbers of a batch's constraints among zeros for the others, in the multipliers' types."""
    spread = problem.lagrangian.into_rows(vector.zeros_like(all_of), of_batch, data)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), spread, differentiable(all_of))
