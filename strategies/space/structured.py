"""Domains whose values satisfy a constraint by construction: shares of a total, ordered arrays.

Both break a stick: coordinate `i` decides which fraction of what is left goes to part `i`. The
fraction is `u / (u + (1 - u) m)` with `m` the number of later parts, so that 1/2 everywhere gives
equal parts, and the coordinates stay comparable however many parts there are.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from strategies.space.domains import _SLACK, Domain, _bound, _check_bounds, _fail, numbers

# Sums and differences of many parts lose digits, so the grid is coarser than that of a plain float.
_DIGITS = 10


def _fractions(unit: np.ndarray, later: np.ndarray) -> np.ndarray:
    return unit / (unit + (1.0 - unit) * later)


def _parts(fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts of a stick of length 1, and what was left before each."""
    left = np.concatenate([[1.0], np.cumprod(1.0 - fractions)])
    return fractions * left[:-1], left


def _encode(parts: np.ndarray, later: np.ndarray) -> np.ndarray:
    left = np.maximum(1.0 - np.concatenate([[0.0], np.cumsum(parts)[:-1]]), parts)
    fractions = np.divide(parts, left, out=np.zeros_like(parts), where=left > 0)
    return fractions * later / (fractions * later + 1.0 - fractions)


def _pull_back(unit: np.ndarray, later: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Chain rule from the parts to the coordinates, last part (if it counts) included."""
    fractions = _fractions(unit, later)
    _, left = _parts(fractions)
    result = np.empty_like(unit)
    adjoint = gradient[-1] if len(gradient) > len(unit) else 0.0
    for i in range(len(unit) - 1, -1, -1):
        result[i] = left[i] * (gradient[i] - adjoint)
        adjoint = gradient[i] * fractions[i] + adjoint * (1.0 - fractions[i])
    return result * later / (unit + (1.0 - unit) * later) ** 2


class Stick(Domain):
    """What is made of the parts of a stick: one coordinate for each fraction that is broken off."""

    @property
    def differentiable(self) -> bool:
        """Yes."""
        return True

    @property
    def _later(self) -> np.ndarray:
        return np.arange(self.size, 0, -1.0)

    @abstractmethod
    def _at(self, fractions: np.ndarray) -> Any:
        """The canonical value that is made of fractions of what is left."""

    def decode(self, unit: np.ndarray) -> Any:
        """See `Domain.decode`."""
        return self._at(_fractions(np.clip(unit, 0.0, 1.0), self._later))

    def draw(self, uniform: np.ndarray) -> Any:
        """Uniform over all that can be made: each fraction is a Beta(1, later parts) variate."""
        return self._at(-np.expm1(np.log1p(-np.minimum(uniform, 1 - 1e-16)) / self._later))


@dataclass(frozen=True)
class Simplex(Stick):
    """Non-negative shares with a given sum, such as mixture weights or a split of a budget.

    **Arguments:**

    - `parts`: number of shares, at least 2.
    - `total`: what they sum to.
    - `at_most`: the sum may also be smaller than `total`.
    - `default`: the shares to start from; equal shares if not given.

    The prior is uniform over all such arrays. Shares are rounded to 10 digits of the total.
    """

    parts: int
    total: float = 1.0
    at_most: bool = False

    kind: ClassVar[str] = "simplex"

    def __post_init__(self) -> None:
        if not isinstance(self.at_most, bool):
            raise _fail("at_most", "True or False", self.at_most)
        parts = _bound(self.parts, "parts", int)
        if parts < 2 - self.at_most:
            raise _fail("parts", f"an integer >= {2 - self.at_most}", self.parts)
        object.__setattr__(self, "parts", parts)
        total = _bound(self.total, "total", float)
        if total <= 0:
            raise _fail("total", "a positive number", self.total)
        object.__setattr__(self, "total", float(f"{total:.{_DIGITS}g}"))
        self._settle_default()

    @property
    def size(self) -> int:
        """One coordinate per degree of freedom."""
        return self.parts - (not self.at_most)

    def _canonical(self, shares: np.ndarray) -> Any:
        digits = _DIGITS - math.ceil(math.log10(self.total))
        rounded = np.array([round(share, digits) for share in shares.tolist()])
        free = rounded if self.at_most else rounded[:-1]
        rest = round(self.total - math.fsum(free), digits)
        if rest < 0:
            largest = int(np.argmax(free))
            free[largest] = round(free[largest] + rest, digits)
            rest = 0.0
        return [*free.tolist(), *([] if self.at_most else [rest])]

    def check(self, value: Any, path: str) -> Any:
        """See `Domain.check`."""
        sums = f"{'at most ' if self.at_most else ''}{self.total!r}"
        expected = f"{self.parts} numbers >= 0 with sum {sums}"
        shares = numbers(value, path, expected, (self.parts,))
        excess, room = float(shares.sum()) - self.total, _SLACK * self.total
        if np.any(shares < -room) or excess > room or (excess < -room and not self.at_most):
            raise _fail(path, expected, f"{value!r} with sum {float(shares.sum())!r}")
        return self._canonical(np.maximum(shares, 0.0))

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        return np.clip(_encode(np.asarray(value)[: self.size] / self.total, self._later), 0.0, 1.0)

    def _at(self, fractions: np.ndarray) -> Any:
        parts, left = _parts(fractions)
        return self._canonical(self.total * np.append(parts, [] if self.at_most else left[-1]))

    def pull_back(self, value: Any, gradient: np.ndarray) -> np.ndarray:
        """See `Domain.pull_back`."""
        return self.total * _pull_back(self.encode(value), self._later, np.asarray(gradient, float))


@dataclass(frozen=True)
class Ordered(Stick):
    """An array of numbers in order, such as thresholds, knots of a schedule or layer-wise rates.

    **Arguments:**

    - `low`, `high`: bounds of every entry.
    - `entries`: number of entries.
    - `log`: search the logarithm (then `low > 0`).
    - `decreasing`: from large to small instead of from small to large; ties are allowed.
    - `default`: the array to start from; evenly spaced inside the bounds if not given.

    The prior is that of sorted uniform draws. Entries are rounded to 10 digits.
    """

    low: float
    high: float
    entries: int
    log: bool = False
    decreasing: bool = False

    kind: ClassVar[str] = "ordered"

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _bound(self.low, "low", float))
        object.__setattr__(self, "high", _bound(self.high, "high", float))
        _check_bounds(self.low, self.high, self.log)
        if self.high - self.low < 1e-6 * max(abs(self.low), abs(self.high)):
            raise _fail("high", f"a number further from low={self.low!r}", self.high)
        entries = _bound(self.entries, "entries", int)
        if entries < 1:
            raise _fail("entries", "an integer >= 1", self.entries)
        object.__setattr__(self, "entries", entries)
        self._settle_default()

    @property
    def size(self) -> int:
        """One coordinate per entry."""
        return self.entries

    def _canonical(self, values: np.ndarray) -> Any:
        values = np.clip(values, self.low, self.high).tolist()
        if self.log:
            rounded = [float(f"{value:.{_DIGITS}g}") for value in values]
        else:
            digits = _DIGITS - math.ceil(math.log10(max(abs(self.low), abs(self.high))))
            rounded = [round(value, digits) for value in values]
        return np.clip(rounded, self.low, self.high).tolist()

    def check(self, value: Any, path: str) -> Any:
        """See `Domain.check`."""
        order = "decreasing" if self.decreasing else "increasing"
        expected = f"{self.entries} {order} numbers in [{self.low!r}, {self.high!r}]"
        array = numbers(value, path, expected, (self.entries,))
        room = _SLACK * (np.abs(array) if self.log else self.high - self.low)
        gaps = -np.diff(array) if self.decreasing else np.diff(array)
        if np.any((array < self.low - room) | (array > self.high + room)) or np.any(
            gaps < -np.max(room)
        ):
            raise _fail(path, expected, value)
        # Rounding noise of the caller's own arithmetic is not an inversion.
        running = np.minimum if self.decreasing else np.maximum
        return np.clip(running.accumulate(array), self.low, self.high).tolist()

    def _position(self, value: Any) -> np.ndarray:
        array = np.asarray(value, float)
        if self.log:
            place = np.log(array / self.low) / math.log(self.high / self.low)
        else:
            place = (array - self.low) / (self.high - self.low)
        return place[::-1] if self.decreasing else place

    def _at(self, fractions: np.ndarray) -> Any:
        place = np.minimum(np.cumsum(_parts(fractions)[0]), 1.0)
        if self.log:
            values = self.low * np.exp(place * math.log(self.high / self.low))
        else:
            values = self.low * (1.0 - place) + self.high * place
        return self._canonical(values[::-1] if self.decreasing else values)

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        place = np.clip(self._position(value), 0.0, 1.0)
        return np.clip(_encode(np.diff(place, prepend=0.0), self._later), 0.0, 1.0)

    def pull_back(self, value: Any, gradient: np.ndarray) -> np.ndarray:
        """See `Domain.pull_back`."""
        slope = np.asarray(gradient, float)
        if self.log:
            slope = slope * np.asarray(value, float) * math.log(self.high / self.low)
        else:
            slope = slope * (self.high - self.low)
        if self.decreasing:
            slope = slope[::-1]
        # A part moves every entry from its own on.
        return _pull_back(self.encode(value), self._later, np.cumsum(slope[::-1])[::-1])
