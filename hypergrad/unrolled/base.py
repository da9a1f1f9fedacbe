"""Estimators that make a run of their own for every hypergradient, and differentiate it."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient
from hypergrad.expected import require_choice
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.run import Dynamics
from hypergrad.unrolled.stepped import Differentiated, SteppedEstimator


class UnrolledState(eqx.Module):
    """What the unrolled estimators carry from call to call.

    - `params`: where the last run ended; before the first run, the point given to `init`.
    - `start`: where the next `hypergradient` starts its run.
    - `step_state`, `start_step_state`: the inner step's own state (momenta) at these two points;
      `None` for a cold start, which makes a new one for each run.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `inner_iterations`: steps taken by the last run.
    """

    params: PyTree
    start: PyTree
    step_state: PyTree
    start_step_state: PyTree
    scale: Scalar
    inner_iterations: Int[Array, ""]


class UnrolledEstimator(SteppedEstimator):
    """The base of the estimators that differentiate the steps which were run.

    **Arguments:**

    - `update`: the inner step. A function `hparams -> optax optimizer` (any hyperparameter used
      inside is differentiated), an optax optimizer, or an `InnerStep` such as `StepFunction`.
    - `steps`: length `T` of a run, a positive Python integer. It has no derivative.
    - `initial`: `initial(params, hparams) -> params`, where a run starts, for learned
      initialisations; `params` are those given to `init`. By default these params themselves.
    - `stacked`: the inner batch holds one batch per step, stacked along a leading axis of length
      `steps`. By default the same batch serves all steps.
    - `warm_start`: each `fit` continues from where the last one ended, with the momenta that it had
      then, and the derivative takes this start as constant. By default (cold start) every run
      starts from the params given to `init` with a new optimizer state.
    - `unseen`: `"raise"`, or `"none"`: hyperparameters without a derivative, or whose gradient
      would be biased (`BilevelProblem.biased`), get the gradient `None`.

    `init` runs nothing yet; it costs one inner gradient and one product, for the scale of the
    residual. `hypergradient` runs the steps itself, from the state's start, and returns a state
    with the end of that run in `params` and the same start. A cold start has no need of `fit`,
    which runs them without a derivative; with a warm start it is `fit` that moves the start on.

    A stochastic problem, or step, gets the key `fold_in(key, t)` at step `t`; the outer loss gets
    `key` itself.
    """

    state_type: ClassVar[type] = UnrolledState
    warm_start: bool = eqx.field(static=True)
    unseen: Literal["raise", "none"] = eqx.field(static=True)

    def __init__(
        self,
        update: Any,
        steps: int,
        *,
        initial: Callable | None = None,
        stacked: bool = False,
        warm_start: bool = False,
        unseen: Literal["raise", "none"] = "raise",
    ) -> None:
        require_choice(type(self).__name__, "unseen", unseen, ("raise", "none"))
        super().__init__(update, steps, initial=initial, stacked=stacked)
        if warm_start and initial is not None:
            raise ValueError(
                "A warm start continues from the last run: it excludes `initial`; expected one of "
                "the two."
            )
        self.warm_start = warm_start
        self.unseen = unseen

    def _init(self, given: RestrictedProblem) -> Any:
        self._check(given)
        params = given.params
        step_state = self.update.init(params, given.hparams) if self.warm_start else None
        return UnrolledState(
            params=params,
            start=params,
            step_state=step_state,
            start_step_state=step_state,
            scale=self._scale(given),
            inner_iterations=jnp.zeros((), jnp.int32),
        )

    def _fit(self, given: RestrictedProblem, state: Any) -> tuple[Any, FitInfo]:
        if self.warm_start:
            state = replace(state, start=state.params, start_step_state=state.step_state)
        given = replace(given, params=state.start)
        run = self._dynamics(given, state)
        end = run.advance(run.x, run.rest, run.h, 0, self.steps)
        state = self._moved(state, run, end)
        return state, FitInfo(self._residual(given, state), state.inner_iterations)

    def _hypergradient(self, given: RestrictedProblem, state: Any) -> Hypergradient:
        given = replace(given, params=state.start)
        run = self._dynamics(given, state)
        found, end = self._differentiated(run)
        return self._result(given, self._moved(state, run, end), found)

    @abstractmethod
    def _differentiated(self, run: Dynamics) -> tuple[Differentiated, tuple]:
        """What is found by running all steps and differentiating, and the end of the run."""

    def _dynamics(self, given: RestrictedProblem, state: UnrolledState) -> Dynamics:
        """The run from the state's start."""
        if self.warm_start:
            return self._continued(given, state.start_step_state)
        return self._begun(given)

    def _moved(self, state: UnrolledState, run: Dynamics, end: tuple) -> UnrolledState:
        params, step_state = run.unpack(*end)
        return replace(
            state,
            params=params,
            step_state=step_state if self.warm_start else None,
            inner_iterations=jnp.asarray(self.steps, jnp.int32),
        )
