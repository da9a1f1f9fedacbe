"""A policy that is linear in the features, with its settings kept in their ranges."""

import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.expected import require_number


class Range(eqx.Module):
    """The range of a setting: `low + (high - low) / (1 + exp(-z))`, of the logarithms with `log`.

    **Arguments:**

    - `low`, `high`: bounds that are approached and not reached; `0 < low` with `log`.
    - `start`: the value of `LinearPolicy.init`, strictly between them. Default: halfway.
    - `log`: in the logarithm, as for a learning rate. Default `False`.
    """

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    start: float | None = eqx.field(static=True, default=None)
    log: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        for name in ("low", "high", "start"):
            value = getattr(self, name)
            if value is not None or name != "start":
                require_number("Range", name, value)
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            positive = "0 < " if self.log else ""
            raise ValueError(
                f"Range: expected {positive}low < high, received {self.low} and {self.high}."
            )
        if self.start is not None and not self.low < self.start < self.high:
            raise ValueError(
                f"Range: start expected between {self.low} and {self.high}, received {self.start}."
            )

    @property
    def bias(self) -> float:
        """The `z` of `start`."""
        if self.start is None:
            return 0.0
        share = (self._of(self.start) - self._of(self.low)) / self._width
        return math.log(share / (1 - share))

    def __call__(self, z: Scalar) -> Scalar:
        """The value at `z`."""
        value = self._of(self.low) + self._width * jax.nn.sigmoid(z)
        return jnp.exp(value) if self.log else value

    @property
    def _width(self) -> float:
        return self._of(self.high) - self._of(self.low)

    def _of(self, value: float) -> float:
        return math.log(value) if self.log else value


class LinearPolicy(eqx.Module):
    """`setting = range(theta[name] · features)` for each setting by its name.

    The features must begin with a constant, as those of `TrainingFeatures` do.

    **Arguments:**

    - `ranges`: a `Range` for each setting.
    """

    ranges: Mapping[str, Range]

    def __check_init__(self) -> None:
        given = self.ranges.values() if isinstance(self.ranges, Mapping) else [self.ranges]
        if not given or not all(isinstance(each, Range) for each in given):
            raise ValueError(
                'LinearPolicy: ranges: expected a dict of Range such as {"step": Range(0, 1)}, '
                f"received {self.ranges!r:.80}."
            )

    def init(self, features: int) -> dict[str, Float[Array, " features"]]:
        """Weights with which each setting is at its `start` whatever the features are.

        **Arguments:**

        - `features`: how many there are: `len(step.features.names)`.
        """
        return {
            name: jnp.zeros(features).at[0].set(range.bias) for name, range in self.ranges.items()
        }

    def __call__(self, theta: PyTree, features: Float[Array, " features"]) -> dict[str, Scalar]:
        """The settings."""
        return {
            name: range(jnp.dot(theta[name], features.astype(theta[name].dtype)))
            for name, range in self.ranges.items()
        }
