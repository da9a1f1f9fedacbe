"""How the stochastic methods end a step: the hyperparameters move, or nothing does."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_optimizer, require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import (
    BREAKDOWN,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    check_reach,
    differentiable,
    first_state,
    optimizer_step,
    outer_info,
    step_on,
)
from hypergrad.outer.batches import Batches
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem

# The default, one object for all: an optimizer made anew is another program to `jit`.
DESCENT = optax.sgd(0.1)


class MovingState(OuterState):
    """The common state and the state of the outer optimizer."""

    optimizer_state: PyTree


State = TypeVar("State", bound=MovingState)


class MovingAlgorithm(OuterAlgorithm):
    """An algorithm that moves the hyperparameters by its `optimizer`, params by its `step_size`.

    Subclasses say in `_advance` what a step is, and in `_start` what their state holds besides a
    `MovingState`.
    """

    optimizer: eqx.AbstractVar[optax.GradientTransformation]
    step_size: eqx.AbstractVar[float | Scalar]

    def __check_init__(self) -> None:
        name = type(self).__name__
        require_optimizer(name, self.optimizer)
        require_positive(name, "step_size", self.step_size)

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> MovingState:
        """See `OuterAlgorithm.init`."""
        check_reach(self, problem, params, hparams, batches, key)
        return self._start(batches.restrict(problem, params, hparams, key), batches)

    def step(
        self, problem: BilevelProblem, state: Any, batches: Batches, key: Array | None = None
    ) -> tuple[MovingState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        here = batches.restrict(problem, state.params, state.hparams, key)
        return self._advance(here, state, batches)

    def _start(self, here: RestrictedProblem, batches: Batches) -> MovingState:
        """The state before the first step, which is taken from `here`."""
        return self._first(MovingState, here)

    @abstractmethod
    def _advance(
        self, here: RestrictedProblem, state: Any, batches: Batches
    ) -> tuple[MovingState, OuterInfo]:
        """One step from `here`, the state's point, on the mini-batches of this step."""

    def _first(self, kind: type[State], here: RestrictedProblem, **own: Any) -> State:
        """The first state of a `kind`, with its `own` fields."""
        optimizer_state = self.optimizer.init(here.h)
        return first_state(kind, here.params, here.hparams, optimizer_state=optimizer_state, **own)

    def _moved(
        self,
        state: State,
        hypergradient: PyTree,
        value: Scalar,
        *,
        fitted: bool,
        changes: dict[str, Any],
        **info: Any,
    ) -> tuple[State, OuterInfo]:
        """The state after a step along `hypergradient`, and its info.

        If any new value is not finite nothing moves, and the info says breakdown.

        **Arguments:**

        - `fitted`: whether the new params belong to the hyperparameters before the step (which an
          inner loop was run at) or to those after it (both moved together).
        - `changes`: new values of the state's other fields, `params` among them.
        - `info`: of `outer_info`.
        """
        hparams, optimizer_state, good = optimizer_step(
            self.optimizer, state.optimizer_state, state.hparams, hypergradient, self.constraint
        )
        good = good & jnp.isfinite(value) & vector.all_finite(differentiable((hparams, changes)))
        new = replace(
            state,
            hparams=hparams,
            visited=state.hparams if fitted else hparams,
            hypergradient=hypergradient,
            optimizer_state=optimizer_state,
            **changes,
        )
        return step_on(state, new, good), outer_info(
            value,
            hypergradient,
            state.hparams,
            self.constraint,
            accepted=good,
            stop=jnp.where(good, RUNNING, BREAKDOWN),
            **info,
        )
