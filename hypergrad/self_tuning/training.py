"""One run that trains weights and tunes hyperparameters: alternating, as pure step functions."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.compiled import strong
from hypergrad.estimator import Estimator, Hypergradient
from hypergrad.expected import require, require_count, require_optimizer
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning.schedule import Schedule


class TuningState(eqx.Module):
    """The state of a run: a pytree, to be saved and restored as one.

    - `step`: training steps taken.
    - `hparams`: the current hyperparameters (unconstrained).
    - `estimator`: the estimator's state; `estimator.params` is the model.
    - `optimizer`: state of the hyperparameters' optimizer.
    - `loss`: the last outer loss, NaN before the first outer step.
    """

    step: Int[Array, ""]
    hparams: PyTree
    estimator: Any
    optimizer: Any
    loss: Scalar


class Tuner(eqx.Module):
    """Alternates training steps with steps of the hyperparameters.

    **Arguments:**

    - `problem`: the inner and outer losses.
    - `estimator`: whose `fit` is a training step, e.g. `SelfTuning`.
    - `optimizer`: an optax optimizer of the hyperparameters. Default `optax.adam(3e-3)`.
    - `train_steps`: training steps for each step of the hyperparameters. Default 2.
    - `warmup`: training steps before the first step of the hyperparameters, whose optimizer is
      left untouched until then. Default 0.

    A step of the hyperparameters that is not finite is not taken.
    """

    problem: BilevelProblem
    estimator: Estimator
    optimizer: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(3e-3))
    train_steps: int = eqx.field(static=True, default=2)
    warmup: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        example = "BilevelProblem(inner_loss, outer_loss)"
        require("Tuner", "problem", self.problem, BilevelProblem, example)
        require("Tuner", "estimator", self.estimator, Estimator, "SelfTuning()")
        require_optimizer("Tuner", self.optimizer)
        require_count("Tuner", "train_steps", self.train_steps)
        require_count("Tuner", "warmup", self.warmup, 0)

    def init(
        self, params: PyTree, hparams: PyTree, inner_batch: PyTree, *, key: Array
    ) -> TuningState:
        """The state before training. Arguments as `Estimator.init`."""
        params, hparams = strong((params, hparams))
        state = self.estimator.init(self.problem, params, hparams, inner_batch, key=key)
        moments = self.optimizer.init(eqx.filter(hparams, eqx.is_inexact_array))
        loss = jnp.full((), jnp.nan, float)
        return TuningState(jnp.zeros((), jnp.int32), hparams, state, moments, loss)

    @eqx.filter_jit
    def train(self, state: TuningState, inner_batch: PyTree) -> TuningState:
        """One training step."""
        fitted, _ = self.estimator.fit(self.problem, state.estimator, state.hparams, inner_batch)
        return eqx.tree_at(lambda s: (s.step, s.estimator), state, (state.step + 1, fitted))

    @eqx.filter_jit
    def tune(
        self, state: TuningState, inner_batch: PyTree, outer_batch: PyTree
    ) -> tuple[TuningState, Hypergradient]:
        """One step of the hyperparameters."""
        result = self.estimator.hypergradient(
            self.problem, state.estimator, state.hparams, inner_batch, outer_batch
        )
        current = eqx.filter(state.hparams, eqx.is_inexact_array)
        updates, moments = self.optimizer.update(result.grad, state.optimizer, current)
        good = ~result.info.breakdown
        hparams, moments = jax.tree.map(
            lambda a, b: jnp.where(good, a, b) if eqx.is_array(a) else a,
            (eqx.apply_updates(state.hparams, updates), moments),
            (state.hparams, state.optimizer),
        )
        state = TuningState(
            state.step, hparams, result.state, moments, result.value.astype(state.loss.dtype)
        )
        return state, result

    def due(self, step: int) -> bool:
        """Whether a step of the hyperparameters follows training step number `step` (from 1)."""
        return step > self.warmup and step % self.train_steps == 0

    def run(
        self,
        state: TuningState,
        batches: Iterable[tuple[PyTree, PyTree]],
        *,
        values: Callable[[PyTree], dict[str, Array]] | None = None,
        callback: Callable[[TuningState], Any] | None = None,
    ) -> tuple[TuningState, Schedule]:
        """Train over an iterable of pairs of an inner and an outer batch.

        **Arguments:**

        - `state`: from `init`, or of an earlier run that is continued.
        - `batches`: one pair for each training step.
        - `values`: maps `hparams` to the values to record, e.g. `Hyperparameters.values`. By
          default `hparams` itself, which then must be a dict.
        - `callback`: called with the state after every training step.

        **Returns:** the final state, and the schedule of the hyperparameters at the start and after
        each of their steps.
        """
        values = values or dict
        step = int(state.step)
        steps, rows = [step], [_host(values(state.hparams))]
        for inner_batch, outer_batch in batches:
            state = self.train(state, inner_batch)
            step += 1
            if self.due(step):
                state, _ = self.tune(state, inner_batch, outer_batch)
                steps.append(step)
                rows.append(_host(values(state.hparams)))
            if callback is not None:
                callback(state)
        return state, Schedule(steps, {name: [row[name] for row in rows] for name in rows[0]})


def _host(values: dict[str, Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}
