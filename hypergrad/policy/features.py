"""What a policy sees of a training: numbers of the order of one, the same for every instance."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from hypergrad.expected import require_number
from hypergrad.linear import vector

#: Decades stay within this, so that a training that ends at zero or diverges has features, too.
_LIMIT = 10.0
_DECADE = 2.302585092994046  # log 10


class Features(eqx.Module):
    """What of a training is shown to a policy, with a memory of its own."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """A name for each number, in their order."""

    @abstractmethod
    def init(self, params: PyTree) -> PyTree:
        """The memory before the first step; `params` are the differentiated leaves."""

    @abstractmethod
    def __call__(
        self, memory: PyTree, time: Scalar, loss: Scalar, gradient: PyTree
    ) -> tuple[Float[Array, " features"], Any]:
        """The numbers before a step, and the memory after it.

        **Arguments:**

        - `memory`: from `init`, or from the last step.
        - `time`: the share of the training that is over, from 0; beyond 1 in a longer one.
        - `loss`, `gradient`: of the training loss, before the step.
        """


class TrainingMemory(eqx.Module):
    """What `TrainingFeatures` remembers of the steps before."""

    begun: Bool[Array, ""]
    first_loss: Scalar
    log_gradient: Scalar
    alignment: Scalar
    direction: PyTree


class TrainingFeatures(Features):
    """A constant, time, the size of the gradient, the loss, and how the gradient turns.

    - `one`: 1.
    - `time`: steps over the horizon.
    - `gradient`: running mean of the decimal log of the gradient's norm.
    - `loss`: decimal log of the loss over its first value. A loss must be positive: else it is NaN.
    - `alignment`: running mean of the cosine between a gradient and the one before. Near 1 steps
      are short, below 0 they jump across the valley.

    Logarithms are kept within ±10.

    **Arguments:**

    - `decay`: of the running means, from 0 to below 1. Default 0.9.
    """

    decay: float = 0.9

    def __check_init__(self) -> None:
        require_number("TrainingFeatures", "decay", self.decay)
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"TrainingFeatures: decay expected from 0 to below 1, received {self.decay}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """See `Features.names`."""
        return ("one", "time", "gradient", "loss", "alignment")

    def init(self, params: PyTree) -> TrainingMemory:
        """See `Features.init`."""
        zero = jnp.zeros((), vector.vdot(params, params).dtype)
        return TrainingMemory(
            jnp.asarray(False), zero + 1, zero, zero, vector.zeros_like(vector.widen(params))
        )

    def __call__(
        self, memory: TrainingMemory, time: Scalar, loss: Scalar, gradient: PyTree
    ) -> tuple[Float[Array, " features"], TrainingMemory]:
        """See `Features.__call__`."""
        dtype = memory.log_gradient.dtype
        begun, loss = memory.begun, loss.astype(dtype)
        # Of the square, so that a gradient of zero has a derivative.
        tiny = jnp.finfo(dtype).tiny
        square = vector.vdot(gradient, gradient).astype(dtype) + tiny
        size = _bounded(0.5 * jnp.log(square) / _DECADE)
        direction = jax.tree.map(lambda g: g.astype(dtype) / jnp.sqrt(square), gradient)
        first = jnp.where(begun, memory.first_loss, loss)
        mean = jnp.where(begun, self._mean(memory.log_gradient, size), size)
        turn = vector.vdot(direction, memory.direction)
        alignment = jnp.where(begun, self._mean(memory.alignment, turn), 0)
        progress = _bounded(jnp.log(loss / first) / _DECADE)
        numbers = jnp.stack([jnp.ones_like(mean), time.astype(dtype), mean, progress, alignment])
        return numbers, TrainingMemory(jnp.asarray(True), first, mean, alignment, direction)

    def _mean(self, before: Scalar, now: Scalar) -> Scalar:
        return self.decay * before + (1 - self.decay) * now


def _bounded(x: Scalar) -> Scalar:
    return jnp.clip(x, -_LIMIT, _LIMIT)
