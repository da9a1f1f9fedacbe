"""Probabilities: numbers between 0 and 1 whose distance to either end matters."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit

from strategies.space.domains import (
    _DIGITS,
    _SLACK,
    Normal,
    _around,
    _bound,
    _check_bounds,
    _check_spread,
    _fail,
    _number,
)

# Bounds whose logits are nearer to each other have no digits between them.
_NEAREST = 1e-9


@dataclass(frozen=True)
class Logit(Normal):
    """A number strictly between 0 and 1, searched by its logit, `log(x / (1 − x))`.

    For momenta, decays and dropout rates: 0.9, 0.99 and 0.999 are as far from each other as 0.1,
    0.01 and 0.001. Ray and Optuna have no such distribution and refuse it: for the embedded engine
    and populations.

    **Arguments:**

    - `low`, `high`: the bounds, both included.
    - `default`: the value to start from.
    - `spread`: as in `Float`, in units of the range of logits.

    **Raises:** `ValueError` if the bounds are not ordered, not inside (0, 1), or too near.
    """

    low: float
    high: float
    spread: float | None = None

    kind: ClassVar[str] = "logit"
    #: It is always a scalar.
    shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _bound(getattr(self, name), name, float))
            if not 0.0 < getattr(self, name) < 1.0:
                raise _fail(name, "a number strictly between 0 and 1", getattr(self, name))
        _check_bounds(self.low, self.high, False)
        low, high = self.ends
        if high - low < _NEAREST:
            raise _fail("high", f"a number further from low={self.low!r}", self.high)
        self._settle_default()
        _check_spread(self)

    @property
    def differentiable(self) -> bool:
        """The values form a continuum."""
        return True

    @property
    def size(self) -> int:
        """One coordinate."""
        return 1

    @property
    def ends(self) -> tuple[float, float]:
        """The logits of the bounds."""
        return float(logit(self.low)), float(logit(self.high))

    def check(self, value: Any, path: str) -> Any:
        """See `Domain.check`."""
        expected = f"a number in [{self.low!r}, {self.high!r}]"
        number = float(_number(value, path, expected))
        # The slack is relative to the distance to the nearer end of (0, 1).
        room = _SLACK * min(abs(number), abs(1.0 - number))
        if not self.low - room <= number <= self.high + room:
            raise _fail(path, expected, number)
        return min(max(number, self.low), self.high)

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        low, high = self.ends
        return np.clip([(logit(value) - low) / (high - low)], 0.0, 1.0)

    def decode(self, unit: np.ndarray) -> Any:
        """See `Domain.decode`."""
        low, high = self.ends
        place = low + float(np.clip(np.ravel(unit)[0], 0.0, 1.0)) * (high - low)
        # Rounded to digits of the distance to the nearer end.
        near = float(f"{expit(-abs(place)):.{_DIGITS}g}")
        return min(max(near if place < 0 else 1.0 - near, self.low), self.high)

    def draw(self, uniform: np.ndarray) -> Any:
        """Uniform in the logit, or normal around the default."""
        if self.spread is None:
            return self.decode(uniform)
        return self.decode(_around(uniform, self.encode(self.default), self.spread))

    def pull_back(self, value: Any, gradient: np.ndarray) -> np.ndarray:
        """Multiply by `d value / d unit`."""
        low, high = self.ends
        return np.asarray(gradient, float).ravel() * value * (1.0 - value) * (high - low)
