"""Trainings that tune themselves: Delta-STN and STN."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.self_tuning_parts.task import (
    OPTIMIZER,
    Task,
    draw,
    hyperparameters,
    loss,
    training_loss,
)
from experiments.self_tuning_parts.trainer import Report, Round, Trace, Trainer
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Perturbation,
    Schedule,
    SelfTuning,
    Tuner,
    TuningState,
    to_self_tuning,
)

# Learning rate of the hyperparameters. With 0.1 they are at the ends of their domains after a
# thousand steps.
RATE = 0.05


class SelfTuned:
    """Self-tuned trainings of a trainer's network; one compiled program for all.

    **Arguments:**

    - `centred`: Delta-STN, or (`False`) STN.
    """

    def __init__(self, trainer: Trainer, *, centred: bool = True) -> None:
        self.trainer = trainer
        self.domains = hyperparameters(trainer.task.side)
        values = self.domains.values
        self.tuner = Tuner(
            BilevelProblem(
                lambda m, h, b, k: training_loss(m, values(h), b, k),
                lambda m, h, b, k: loss(m, b),
                stochastic=True,
            ),
            SelfTuning(
                OPTIMIZER,
                perturbation=Perturbation(0.5, optimizer=optax.adam(3e-3), entropy=1e-3),
                centred=centred,
            ),
            optimizer=optax.adam(RATE),
        )
        self._advance = eqx.filter_jit(self._round)

    def run(self, rounds: int, trace: Trace, report: Report) -> Schedule:
        """One training, added to `trace`; the values after every round.

        The first round is the warm-up: the response is trained, and nothing tuned yet.
        """
        hparams, task = self.domains.initial(), self.trainer.task
        network, key = self.trainer.network()
        model = to_self_tuning(network, hparams, key=key)
        state = self.tuner.init(model, hparams, draw(task.train, key), key=key)
        rows = [self.domains.values(hparams)]
        for index in range(rounds):
            begin = time.perf_counter()
            state, key, valid = self._advance(task, state, key, jnp.asarray(index > 0))
            valid = float(valid)
            trace.add(Round(valid, state.estimator.params, time.perf_counter() - begin))
            rows.append(self.domains.values(state.hparams))
            report(trace.best)
        steps = np.arange(rounds + 1) * trace.steps
        return Schedule(steps, {n: [np.asarray(row[n]) for row in rows] for n in rows[0]})

    def _round(
        self, task: Task, state: TuningState, key: Array, tune: Array
    ) -> tuple[TuningState, Array, Scalar]:
        arrays, rest = eqx.partition(state, eqx.is_array)
        tuner = self.tuner

        def train_step(arrays: PyTree, key: Array) -> tuple[PyTree, None]:
            state = tuner.train(eqx.combine(arrays, rest), draw(task.train, key))
            return eqx.filter(state, eqx.is_array), None

        def tune_step(arrays: PyTree, key: Array) -> PyTree:
            state = eqx.combine(arrays, rest)
            state, _ = tuner.tune(state, draw(task.train, key), draw(task.valid, key))
            return eqx.filter(state, eqx.is_array)

        def step(arrays: PyTree, key: Array) -> tuple[PyTree, None]:
            keys = jax.random.split(key, tuner.train_steps + 1)
            arrays, _ = jax.lax.scan(train_step, arrays, keys[:-1])
            return jax.lax.cond(tune, tune_step, lambda a, _: a, arrays, keys[-1]), None

        steps = self.trainer.steps // tuner.train_steps
        key, *keys = jax.random.split(key, steps + 1)
        arrays, _ = jax.lax.scan(step, arrays, jnp.stack(keys))
        state = eqx.combine(arrays, rest)
        return state, key, loss(state.estimator.params, task.valid)
