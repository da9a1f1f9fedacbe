"""Real-time hyperparameter optimization (RTHO): forward mode that goes on while λ changes.

`Z` of `hypergrad.unrolled.forward` is kept from one window of steps to the next, and the
hyperparameters are changed in between (Franceschi, Donini, Frasconi & Pontil 2017, section 3.2).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.unrolled.base import UnrolledEstimator, finish
from hypergrad.unrolled.forward import advance_tangents, contract, start_tangents
from hypergrad.unrolled.reverse import outer_at_end, rounding_error
from hypergrad.unrolled.run import require_effect


class OnlineState(eqx.Module):
    """What the online estimator carries.

    - `params`, `step_state`: the current inner point and the inner step's own state there.
    - `tangents`: `Z`, like the differentiable part of `(params, step_state)` with one more leading
      axis over all entries of the hyperparameters.
    - `hparams`: the values that `tangents` were begun with.
    - `drifted`: the hyperparameters have changed since.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `steps`: steps taken since `init`.
    - `inner_iterations`: steps taken by the last `fit`.
    """

    params: PyTree
    step_state: PyTree
    tangents: PyTree
    hparams: PyTree
    drifted: Bool[Array, ""]
    scale: Scalar
    steps: Int[Array, ""]
    inner_iterations: Int[Array, ""]


class OnlineUnrolled(UnrolledEstimator):
    """Forward mode carried on while training, one training run for the whole search.

    `fit` takes `steps` further steps and carries the derivative along; `hypergradient` costs one
    gradient of the outer loss and runs nothing. Time and memory grow with the number of
    hyperparameters as for `ForwardUnrolled`.

    **Arguments:** `update`, `steps` (per `fit`), `initial` (applied once, by `init`) and `stacked`
    of `UnrolledEstimator`. Give each `fit` its own key.

    As long as the hyperparameters have not changed since `init`, the derivative is that of all
    steps taken so far, and `info.error` the rounding error. Afterwards `Z` mixes derivatives taken
    at different values; the bias is small when they change slowly compared to how fast the run
    forgets, and `info.error` is NaN: not known.
    """

    state_type: ClassVar[type] = OnlineState

    def __init__(
        self, update: Any, steps: int, *, initial: Callable | None = None, stacked: bool = False
    ) -> None:
        super().__init__(update, steps, initial=initial, stacked=stacked)

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> OnlineState:
        """The state at `params` (through `initial`, if given)."""
        run = self._begun(problem, params, hparams, inner_batch, key)
        at, step_state = run.unpack(run.x, run.rest)
        zero = jnp.zeros((), jnp.int32)
        return OnlineState(
            params=at,
            step_state=step_state,
            tangents=start_tangents(run),
            hparams=run.h,
            drifted=jnp.asarray(False),
            scale=self._scale(problem, at, hparams, inner_batch, key),
            steps=zero,
            inner_iterations=zero,
        )

    def fit(
        self,
        problem: BilevelProblem,
        state: OnlineState,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[OnlineState, FitInfo]:
        """Take `steps` further steps, with the derivative."""
        at = state.params, state.step_state
        run = self._continued(problem, at, hparams, inner_batch, key)
        x, rest, tangents = advance_tangents(run, state.tangents, self.steps)
        params, step_state = run.unpack(x, rest)
        taken = jnp.asarray(self.steps, jnp.int32)
        state = OnlineState(
            params=params,
            step_state=step_state,
            tangents=tangents,
            hparams=state.hparams,
            drifted=state.drifted | _differ(state.hparams, run.h),
            scale=state.scale,
            steps=state.steps + taken,
            inner_iterations=taken,
        )
        return state, FitInfo(self._residual(problem, state, hparams, inner_batch, key), taken)

    def hypergradient(
        self,
        problem: BilevelProblem,
        state: OnlineState,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """The derivative at the state's `params`, which stay where they are."""
        at = state.params, state.step_state
        run = self._continued(problem, at, hparams, inner_batch, key)
        outer = outer_at_end(problem, run, outer_batch, key)
        # What acts through `initial` only is in the tangents already.
        if self.initial is None:
            run = require_effect(
                run, outer, 0, self.steps, estimator=type(self).__name__, forward=True
            )
        (value, aux), (cotangent, direct) = jax.value_and_grad(
            lambda x, h: outer(x, h, aux=True), argnums=(0, 1), has_aux=True
        )(run.x, run.h)
        grad, total = contract(cotangent, state.tangents, direct)
        drifted = state.drifted | _differ(state.hparams, run.h)
        rounding = rounding_error(run, 1, total, grad) * jnp.sqrt(jnp.maximum(state.steps, 1))
        return finish(
            value,
            aux,
            grad,
            run,
            state,
            residual=self._residual(problem, state, hparams, inner_batch, key),
            inner_iterations=state.inner_iterations,
            differentiated=state.steps,
            breakdown=jnp.asarray(False),
            error=jnp.where(drifted, jnp.nan, rounding),
        )


def _differ(x: PyTree, y: PyTree) -> Array:
    return ~vector.all_finite(x) | (vector.norm(vector.sub(x, y)) != 0)
