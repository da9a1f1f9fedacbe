"""Real-time hyperparameter optimization (RTHO): forward mode that goes on while λ changes.

`Z` of `hypergrad.unrolled.forward` is kept from one window of steps to the next, and the
hyperparameters are changed in between (Franceschi, Donini, Frasconi & Pontil 2017, section 3.2).
"""

from dataclasses import replace
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient
from hypergrad.linear import vector
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.effect import require_effect
from hypergrad.unrolled.forward import Carried, advance, contract, start_carried
from hypergrad.unrolled.roundings import Growth, rounding_error
from hypergrad.unrolled.stepped import Differentiated, SteppedEstimator


class OnlineState(eqx.Module):
    """What the online estimator carries.

    - `params`, `step_state`: the current inner point and the inner step's own state there.
    - `columns`, `growth`: as in `hypergrad.unrolled.forward.Carried`. The first of `columns` are
      `Z`, like the differentiable part of `(params, step_state)` with one more leading axis over
      all entries of the hyperparameters.
    - `hparams`: the values that `Z` was begun with.
    - `drifted`: the hyperparameters have changed since.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `steps`: steps taken since `init`.
    - `inner_iterations`: steps taken by the last `fit`.
    """

    params: PyTree
    step_state: PyTree
    columns: PyTree
    growth: Growth
    hparams: PyTree
    drifted: Bool[Array, ""]
    scale: Scalar
    steps: Int[Array, ""]
    inner_iterations: Int[Array, ""]


class OnlineUnrolled(SteppedEstimator):
    """Forward mode carried on while training, one training run for the whole search.

    `fit` takes `steps` further steps and carries the derivative along; `hypergradient` costs one
    gradient of the outer loss and runs nothing. Time and memory grow with the number of
    hyperparameters as for `ForwardUnrolled`.

    **Arguments:** `update`, `steps` (per `fit`), `initial` (applied once, by `init`) and `stacked`
    of `UnrolledEstimator`. Give each `fit` its own key.

    As long as the hyperparameters have not changed since `init`, the derivative is that of all
    steps taken so far, and `info.error` the rounding error, as in `ForwardUnrolled`. Afterwards it
    mixes derivatives taken at different values; the bias is small when they change slowly compared
    to how fast the run forgets, and `info.error` is NaN: not known.
    """

    state_type: ClassVar[type] = OnlineState

    # Said here as well: type checkers take a module without one for a dataclass.
    __init__ = SteppedEstimator.__init__

    def _init(self, given: RestrictedProblem) -> OnlineState:
        run = self._begun(given)
        at, step_state = run.unpack(run.x, run.rest)
        carried = start_carried(run)
        zero = jnp.zeros((), jnp.int32)
        return OnlineState(
            params=at,
            step_state=step_state,
            columns=carried.columns,
            growth=carried.growth,
            hparams=run.h,
            drifted=jnp.asarray(False),
            scale=self._scale(replace(given, params=at)),
            steps=zero,
            inner_iterations=zero,
        )

    def _fit(self, given: RestrictedProblem, state: OnlineState) -> tuple[OnlineState, FitInfo]:
        run = self._continued(given, state.step_state)
        carried = advance(run, Carried(run.x, run.rest, state.columns, state.growth), self.steps)
        params, step_state = run.unpack(carried.x, carried.rest)
        taken = jnp.asarray(self.steps, jnp.int32)
        state = replace(
            state,
            params=params,
            step_state=step_state,
            columns=carried.columns,
            growth=carried.growth,
            drifted=state.drifted | _differ(state.hparams, run.h),
            steps=state.steps + taken,
            inner_iterations=taken,
        )
        return state, FitInfo(self._residual(given, state), taken)

    def _hypergradient(self, given: RestrictedProblem, state: OnlineState) -> Hypergradient:
        run = self._continued(given, state.step_state)
        # What acts through `initial` only is in `Z` already.
        if self.initial is None:
            name = type(self).__name__
            run = require_effect(run, 0, self.steps, estimator=name, forward=True)
        value, aux, cotangent, direct = run.outer_derivative(run.x)
        carried = Carried(run.x, run.rest, state.columns, state.growth)
        grad, total = contract(cotangent, carried, direct)
        drifted = state.drifted | _differ(state.hparams, run.h)
        rounding = rounding_error(run, 1, total, grad) * jnp.sqrt(jnp.maximum(state.steps, 1))
        error = jnp.where(drifted, jnp.nan, rounding)
        found = Differentiated(run, value, aux, grad, state.steps, error)
        return self._result(given, state, found)


def _differ(x: PyTree, y: PyTree) -> Array:
    return ~vector.all_finite(x) | (vector.norm(vector.sub(x, y)) != 0)
