"""How the stochastic methods end a step: the hyperparameters move, or nothing does."""

from dataclasses import replace
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, Scalar

from hypergrad.expected import require_optimizer, require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import (
    BREAKDOWN,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    differentiable,
    optimizer_step,
    outer_info,
)

# The default, one object for all: an optimizer made anew is another program to `jit`.
DESCENT = optax.sgd(0.1)


class MovingState(OuterState):
    """The common state and the state of the outer optimizer."""

    optimizer_state: PyTree


class MovingAlgorithm(OuterAlgorithm):
    """An algorithm that moves the hyperparameters by its `optimizer`, params by its `step_size`."""

    optimizer: eqx.AbstractVar[optax.GradientTransformation]
    step_size: eqx.AbstractVar[float | Scalar]

    def __check_init__(self) -> None:
        name = type(self).__name__
        require_optimizer(name, self.optimizer)
        require_positive(name, "step_size", self.step_size)


State = TypeVar("State", bound=MovingState)


def start_moving(
    kind: type[State], algorithm: MovingAlgorithm, params: PyTree, hparams: PyTree, **own: Any
) -> State:
    """The first state of a `kind`, with its `own` fields."""
    return kind(
        step=jnp.zeros((), jnp.int32),
        hparams=hparams,
        visited=hparams,
        params=params,
        hypergradient=jax.tree.map(jnp.zeros_like, differentiable(hparams)),
        optimizer_state=algorithm.optimizer.init(differentiable(hparams)),
        **own,
    )


def move_along(
    algorithm: MovingAlgorithm,
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

    - `fitted`: whether the new params belong to the hyperparameters before the step (which an inner
      loop was run at) or to those after it (both moved together).
    - `changes`: new values of the state's other fields, `params` among them.
    - `info`: of `outer_info`.
    """
    hparams, optimizer_state, good = optimizer_step(
        algorithm.optimizer,
        state.optimizer_state,
        state.hparams,
        hypergradient,
        algorithm.constraint,
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
    new = replace(vector.where(good, new, state), step=state.step + 1)
    return new, outer_info(
        value,
        hypergradient,
        state.hparams,
        algorithm.constraint,
        accepted=good,
        stop=jnp.where(good, RUNNING, BREAKDOWN),
        **info,
    )
