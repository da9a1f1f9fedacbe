"""Validation accuracy after so many epochs: from the LCBench surrogate, or of real small networks.

Both give the accuracies (%) of configurations at resources, as a matrix, and know their search
space; the epoch is not part of it, because schedulers decide it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.lcbench import LCBench
from experiments.data.tabular import tabular
from strategies.space import Float, Int, SearchSpace


class Curves(Protocol):
    """What both are."""

    name: str
    space: SearchSpace

    def __call__(
        self, configs: Sequence[Mapping[str, Any]], resources: Sequence[float]
    ) -> np.ndarray:
        """Accuracies (%), shape `(len(configs), len(resources))`; resources ascending."""


class SurrogateCurves:
    """Trainings on one data set of LCBench, up to 52 epochs, answered by the surrogate."""

    def __init__(self, bench: LCBench, task: str) -> None:
        self._bench, self.name = bench, task
        self.space = SearchSpace(
            {
                name: Int(low, high, log=log) if integer else Float(low, high, log=log)
                for name, (low, high, log, integer) in bench.space.items()
            }
        )

    def __call__(
        self, configs: Sequence[Mapping[str, Any]], resources: Sequence[float]
    ) -> np.ndarray:
        """Accuracies (%), shape `(len(configs), len(resources))`."""
        rows = [config for config in configs for _ in resources]
        epochs = np.tile(np.asarray(resources, float), len(configs))
        found = self._bench(self.name, rows, epochs)["val_accuracy"]
        return found.reshape(len(configs), len(resources)).astype(float)


class DigitsCurves:
    """One hidden layer of 24 units on handwritten digits, trained by momentum with dropout.

    All configurations given at once are trained at once, in one compiled program.

    **Arguments:**

    - `seed`: of the split, the initial weights, the batches and the dropout.
    - `batch`: examples in a batch. An epoch is as many batches as the training part holds.
    """

    name = "digits"

    def __init__(self, *, seed: int = 0, batch: int = 128) -> None:
        data = tabular("digits", seed=seed)
        # Noise on the pixels: without it nearly every network is right on all digits.
        noise = np.random.default_rng(seed)
        self._x, self._y = self._noisy(data.train.x, noise), jnp.asarray(data.train.y)
        self._outer_x = self._noisy(data.validation.x, noise)
        self._outer_y = jnp.asarray(data.validation.y)
        self._batch, self._key = batch, jax.random.key(seed)
        self._weights = {
            "a": noise.standard_normal((64, 24)) / 8,
            "b": np.zeros(24),
            "c": noise.standard_normal((24, 10)) / 5,
            "d": np.zeros(10),
        }
        self._steps = len(data.train.y) // batch
        self.space = SearchSpace(
            {
                "learning_rate": Float(1e-3, 1.0, log=True),
                "momentum": Float(0.0, 0.99),
                "weight_decay": Float(1e-6, 1e-1, log=True),
                "dropout": Float(0.0, 0.8),
            }
        )
        self._advance = jax.jit(jax.vmap(self._train, in_axes=(0, 0, None, None)))
        self._accuracy = jax.jit(jax.vmap(self._score))

    @staticmethod
    def _noisy(x: np.ndarray, noise: np.random.Generator) -> jax.Array:
        return jnp.asarray(x / 16 + 0.3 * noise.standard_normal(x.shape), jnp.float32)

    def __call__(
        self, configs: Sequence[Mapping[str, Any]], resources: Sequence[float]
    ) -> np.ndarray:
        """Accuracies (%), shape `(len(configs), len(resources))`; resources ascending."""
        given = {
            name: np.array([config[name] for config in configs], np.float32)
            for name in self.space.domains
        }
        weights = {
            name: np.repeat(leaf[None].astype(np.float32), len(configs), 0)
            for name, leaf in self._weights.items()
        }
        state: Any = weights, {name: np.zeros_like(leaf) for name, leaf in weights.items()}
        found, done = [], 0
        for resource in resources:
            step = round(resource * self._steps)
            state = self._advance(state, given, done, step)
            found.append(np.asarray(self._accuracy(state[0])))
            done = step
        return 100 * np.stack(found, 1)

    def _train(self, state: Any, config: dict[str, jax.Array], start: int, stop: int) -> Any:
        """Steps `start` to `stop`; batches and dropout depend on the number of the step only."""

        def loss(weights: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
            hidden = jax.nn.relu(self._x[rows] @ weights["a"] + weights["b"])
            kept = jax.random.bernoulli(key, 1 - config["dropout"], hidden.shape)
            hidden = hidden * kept / (1 - config["dropout"])
            logits = hidden @ weights["c"] + weights["d"]
            of_label = jnp.take_along_axis(jax.nn.log_softmax(logits), self._y[rows][:, None], 1)
            decay = sum(jnp.sum(weights[name] ** 2) for name in "ac")
            return -jnp.mean(of_label) + config["weight_decay"] / 2 * decay

        def step(number: jax.Array, state: Any) -> Any:
            weights, velocity = state
            choose, drop = jax.random.split(jax.random.fold_in(self._key, number))
            rows = jax.random.randint(choose, (self._batch,), 0, len(self._y))
            gradient = jax.grad(loss)(weights, rows, drop)
            velocity = jax.tree.map(
                lambda v, g: config["momentum"] * v - config["learning_rate"] * g,
                velocity,
                gradient,
            )
            return jax.tree.map(jnp.add, weights, velocity), velocity

        return jax.lax.fori_loop(start, stop, step, state)

    def _score(self, weights: Any) -> jax.Array:
        hidden = jax.nn.relu(self._outer_x @ weights["a"] + weights["b"])
        logits = hidden @ weights["c"] + weights["d"]
        right = jnp.mean(jnp.argmax(logits, 1) == self._outer_y)
        return jnp.where(jnp.all(jnp.isfinite(logits)), right, jnp.nan)
