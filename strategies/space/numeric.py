"""Numbers: an interval, linear or logarithmic, of floats or integers."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np

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
    numbers,
)

# Rounding errors of `low + k * step` in the caller's own arithmetic, in units of the last place.
_ULPS = 4


@dataclass(frozen=True)
class Float(Normal):
    """A number, or an array of numbers, between two bounds.

    **Arguments:**

    - `low`, `high`: the bounds, both included.
    - `log`: search the logarithm (then `low > 0`).
    - `shape`: shape of an array-valued hyperparameter (one per feature, layer, example...); its
      value is a nested list. `()` is a scalar.
    - `step`: only `low`, `low + step`, ...; such a hyperparameter is searched, not differentiated.
    - `default`: the value to start from; a scalar is broadcast to `shape`.
    - `spread`: width of the prior around the default: standard deviation of a normal distribution,
      in units of the (logarithmic) range. Without it the prior is uniform.

    **Raises:** `ValueError` if the bounds are not ordered, not finite, or not positive under `log`.
    """

    low: float
    high: float
    log: bool = False
    shape: tuple[int, ...] = ()
    step: float | None = None
    spread: float | None = None

    kind: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "low", _bound(self.low, "low", float))
        put(self, "high", _bound(self.high, "high", float))
        _check_bounds(self.low, self.high, self.log)
        scale = max(abs(self.low), abs(self.high))
        if self.high - self.low < 1e-9 * scale:
            raise _fail("high", f"a number further from low={self.low!r}", self.high)
        shape = self.shape if isinstance(self.shape, Sequence) else (self.shape,)
        if any(not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1 for n in shape):
            raise _fail("shape", "a tuple of positive integers", self.shape)
        put(self, "shape", tuple(map(int, shape)))
        if self.step is not None:
            step = _bound(self.step, "step", float)
            if not 0 < step <= (self.high - self.low) * (1 + 1e-9):
                raise _fail("step", f"a number in (0, {self.high - self.low}]", step)
            put(self, "step", step)
            if self._last > 10**9:
                raise _fail("step", "a step that leaves at most 10^9 values", step)
        if self.default is not None and self.shape and np.ndim(self.default) == 0:
            put(self, "default", np.full(self.shape, self.default).tolist())
        self._settle_default()
        _check_spread(self)

    @property
    def differentiable(self) -> bool:
        """Whether the values form a continuum."""
        return self.step is None

    @property
    def size(self) -> int:
        """One coordinate per entry."""
        return math.prod(self.shape)

    @property
    def count(self) -> float:
        """See `Domain.count`."""
        return math.inf if self.step is None else float(self._last + 1) ** self.size

    def every(self) -> Iterable[Any]:
        """See `Domain.every`."""
        assert self.step is not None
        grid = self._canonical(self.low + self.step * np.arange(self._last + 1)).tolist()
        found = itertools.product(grid, repeat=self.size)
        return (np.reshape(entries, self.shape).tolist() for entries in found)

    @property
    def _last(self) -> int:
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9)

    def _canonical(self, values: np.ndarray) -> np.ndarray:
        values = np.clip(values, self.low, self.high)
        if self.step is not None:
            low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
            index = np.clip(np.rint((values - self.low) / self.step), 0, self._last)
            rounded = [float(low + int(k) * step) for k in index.ravel()]
        elif self.log:
            rounded = [float(f"{value:.{_DIGITS}g}") for value in values.ravel().tolist()]
        else:
            digits = _DIGITS - math.ceil(math.log10(max(abs(self.low), abs(self.high))))
            rounded = [round(value, digits) for value in values.ravel().tolist()]
        return np.clip(np.reshape(rounded, values.shape), self.low, self.high)

    def check(self, value: Any, path: str) -> Any:
        """See `Domain.check`."""
        limits = f"in [{self.low!r}, {self.high!r}]"
        if self.shape:
            expected = f"an array of shape {self.shape} {limits}"
            array = numbers(value, path, expected, self.shape)
        else:
            expected = f"a number {limits}"
            array = np.asarray(float(_number(value, path, expected)))
        # On a log scale the slack is relative to the value itself.
        room = _SLACK * (np.abs(array) if self.log else self.high - self.low)
        outside = (array < self.low - room) | (array > self.high + room)
        if np.any(outside):
            raise _fail(path, expected, array[outside].ravel()[0].item())
        if self.step is None:
            return np.clip(array, self.low, self.high).tolist()
        canonical = self._canonical(array)
        off = np.abs(canonical - array)
        if np.any(off > np.maximum(1e-6 * self.step, _ULPS * np.spacing(np.abs(array)))):
            nearest = canonical.ravel()[np.argmax(off)].item()
            raise _fail(path, f"a multiple of {self.step} from {self.low} ({nearest!r}?)", value)
        return canonical.tolist()

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        array = np.asarray(value, float).ravel()
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            unit = (np.log(array) - low) / (high - low)
        else:
            unit = (array - self.low) / (self.high - self.low)
        return np.clip(unit, 0.0, 1.0)

    def decode(self, unit: np.ndarray) -> Any:
        """See `Domain.decode`."""
        unit = np.clip(np.asarray(unit, float), 0.0, 1.0).reshape(self.shape)
        return self._canonical(self._natural(unit)).tolist()

    def _natural(self, unit: np.ndarray) -> np.ndarray:
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return np.exp(low + unit * (high - low))
        # Exact at both ends, unlike low + unit * (high - low).
        return self.low * (1.0 - unit) + self.high * unit

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See `Domain.snap`."""
        units = np.clip(units, 0.0, 1.0)
        if self.step is None:
            return units
        index = np.clip(np.rint((self._natural(units) - self.low) / self.step), 0, self._last)
        # Rounding to canonical digits is slow, and the same for every entry at the same value.
        distinct, which = np.unique(index, return_inverse=True)
        return self.encode(self._canonical(self.low + distinct * self.step))[which].reshape(
            units.shape
        )

    def draw(self, uniform: np.ndarray) -> Any:
        """Uniform in the coordinate, or normal around the default; a linear grid has equal odds."""
        if self.spread is not None:
            return self.decode(_around(uniform, self.encode(self.default), self.spread))
        if self.step is None or self.log:
            return self.decode(uniform)
        index = np.minimum(np.floor(uniform * (self._last + 1)), self._last)
        return self._canonical(self.low + index.reshape(self.shape) * self.step).tolist()

    def pull_back(self, value: Any, gradient: np.ndarray) -> np.ndarray:
        """Multiply by `d value / d unit`."""
        gradient = np.asarray(gradient, float).ravel()
        if self.log:
            return gradient * np.asarray(value, float).ravel() * math.log(self.high / self.low)
        return gradient * (self.high - self.low)


@dataclass(frozen=True)
class Int(Normal):
    """An integer between two bounds, both included.

    **Arguments:**

    - `low`, `high`: the bounds; with a step the last value is the largest `low + k step <= high`.
    - `log`: search the logarithm (then `low > 0`).
    - `step`: distance between neighbours.
    - `spread`: as in `Float`.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1
    spread: float | None = None

    kind: ClassVar[str] = "int"

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("low", "high", "step"):
            put(self, name, _bound(getattr(self, name), name, int))
        _check_bounds(self.low, self.high, self.log)
        if not 1 <= self.step <= self.high - self.low:
            raise _fail("step", f"an integer in [1, {self.high - self.low}]", self.step)
        if self._last >= 10**9:
            raise _fail("high", "at most 10^9 values", self.high)
        put(self, "high", self.low + self._last * self.step)
        self._settle_default()
        _check_spread(self)

    @property
    def size(self) -> int:
        """One coordinate."""
        return 1

    @property
    def count(self) -> float:
        """See `Domain.count`."""
        return self._last + 1

    @property
    def values(self) -> range:
        """All values."""
        return range(self.low, self.high + 1, self.step)

    def every(self) -> Iterable[Any]:
        """See `Domain.every`."""
        return self.values

    @property
    def _last(self) -> int:
        return (self.high - self.low) // self.step

    def _log_edges(self) -> tuple[float, float]:
        # Half a step beyond the bounds, so that every integer owns an interval of the coordinate.
        return math.log(max(self.low - self.step / 2, self.low / 2)), math.log(
            self.high + self.step / 2
        )

    def check(self, value: Any, path: str) -> int:
        """See `Domain.check`."""
        stepped = f", a multiple of {self.step} from {self.low}" if self.step > 1 else ""
        expected = f"an integer in [{self.low}, {self.high}]{stepped}"
        number = _number(value, path, expected)
        if (
            number != int(number)
            or not self.low <= number <= self.high
            or (int(number) - self.low) % self.step
        ):
            raise _fail(path, expected, value)
        return int(number)

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        if self.log:
            low, high = self._log_edges()
            return np.array([(math.log(value) - low) / (high - low)])
        return np.array([((value - self.low) // self.step + 0.5) / (self._last + 1)])

    def decode(self, unit: np.ndarray) -> int:
        """See `Domain.decode`."""
        position = float(np.clip(np.asarray(unit, float).reshape(()), 0.0, 1.0))
        if self.log:
            low, high = self._log_edges()
            index = round((math.exp(low + position * (high - low)) - self.low) / self.step)
        else:
            index = math.floor(position * (self._last + 1))
        return self.low + self.step * min(max(index, 0), self._last)

    def draw(self, uniform: np.ndarray) -> int:
        """Uniform in the coordinate, or normal around the default."""
        centre = np.zeros(1) if self.default is None else self.encode(self.default)
        return self.decode(_around(uniform, centre, self.spread))

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See `Domain.snap`."""
        units = np.clip(units, 0.0, 1.0)
        if not self.log:
            index = np.minimum(np.floor(units * (self._last + 1)), self._last)
            return (index + 0.5) / (self._last + 1)
        low, high = self._log_edges()
        index = np.rint((np.exp(low + units * (high - low)) - self.low) / self.step)
        value = self.low + self.step * np.clip(index, 0, self._last)
        return (np.log(value) - low) / (high - low)
