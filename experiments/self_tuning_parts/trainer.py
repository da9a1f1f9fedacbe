"""Trainings with given values of the hyperparameters, round by round, and what they leave."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.harness import Curve
from experiments.self_tuning_parts.task import (
    OPTIMIZER,
    Network,
    Task,
    Values,
    draw,
    loss,
    training_loss,
)

Report = Callable[[float], None]


class Round(NamedTuple):
    """What a round of training leaves: validation loss, the weights that have it, and seconds."""

    loss: float
    model: PyTree
    seconds: float


class Training(NamedTuple):
    """A training with given values of the hyperparameters, as far as it has come."""

    weights: PyTree
    moments: PyTree
    key: Array


class Trainer:
    """Trainings of one network in rounds of `steps` steps; one compiled program for all values."""

    def __init__(self, task: Task, kind: str, steps: int, seed: int):
        self.kind, self.steps, self.task = kind, steps, task
        self.reseed(seed)
        # What all these networks share.
        self.rest = eqx.filter(self.network()[0], eqx.is_inexact_array, inverse=True)
        self._advance = jax.jit(self._round)

    def reseed(self, seed: int, task: Task | None = None) -> None:
        """Other weights and batches for what follows, and other data, if given."""
        self.task = task or self.task
        # Every example draws a lot: threefry would be half of a step, and of its compilation.
        self._key = jax.random.key(seed, impl="unsafe_rbg")

    def network(self) -> tuple[Network, Array]:
        """An untrained network, and the key of its training: others at each call."""
        self._key, key = jax.random.split(self._key)
        return Network(self.kind, self.task.side, key), key

    def start(self) -> Training:
        """An untrained network. Every training has weights and batches of its own."""
        network, key = self.network()
        weights = eqx.filter(network, eqx.is_inexact_array)
        return Training(weights, OPTIMIZER.init(weights), key)

    def advance(self, state: Training, values: Values) -> tuple[Training, Round]:
        """One round with these values."""
        begin = time.perf_counter()
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
        state, valid = self._advance(self.task, state, arrays)
        valid = float(valid)
        model = eqx.combine(state.weights, self.rest)
        return state, Round(valid, model, time.perf_counter() - begin)

    def _round(self, task: Task, state: Training, values: Values) -> tuple[Training, Scalar]:
        def step(state: Training, _: None) -> tuple[Training, None]:
            batch_key, loss_key, key = jax.random.split(state.key, 3)
            batch = draw(task.train, batch_key)
            grad = jax.grad(
                lambda w: training_loss(eqx.combine(w, self.rest), values, batch, loss_key)
            )(state.weights)
            updates, moments = OPTIMIZER.update(grad, state.moments)
            return Training(optax.apply_updates(state.weights, updates), moments, key), None

        state, _ = jax.lax.scan(step, state, None, length=self.steps)
        return state, loss(eqx.combine(state.weights, self.rest), task.valid)


class Trace:
    """The rounds of all trainings of a method."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.model: PyTree = None

    def add(self, round_: Round) -> None:
        """One more round; a loss that is not finite counts as infinite."""
        value = round_.loss if np.isfinite(round_.loss) else np.inf
        if value < self.best:
            self.model = round_.model
        self.losses.append(value)
        self.seconds.append(round_.seconds)

    @property
    def best(self) -> float:
        """Lowest validation loss so far."""
        return min(self.losses, default=np.inf)

    def times(self) -> np.ndarray:
        """Seconds until the end of each round, every one counted at the median of their times.

        The median, because the first round compiles and others use the machine too.
        """
        return np.arange(1, len(self.losses) + 1) * float(np.median(self.seconds))

    def curve(self, unit: float) -> Curve:
        """Lowest validation loss over time."""
        return Curve(self.times() / unit, np.minimum.accumulate(self.losses))


def train(trainer: Trainer, values: Iterable[Values], trace: Trace, report: Report) -> float:
    """A whole training with the given values in each round; its lowest validation loss."""
    state, losses = trainer.start(), []
    for row in values:
        state, done = trainer.advance(state, row)
        trace.add(done)
        losses.append(done.loss)
        report(trace.best)
    return float(np.nanmin(losses))
