"""Domains: what values one hyperparameter may take, and its unit coordinates.

Every domain maps its values to `size` coordinates in [0, 1] and back. The map is affine in the
value (linear domains) or in its logarithm (`log=True`); a categorical is one-hot. Values are
*canonical*: plain Python numbers that survive JSON and any engine's storage unchanged. Floats that
a searcher decodes are rounded to a decimal grid (12 significant digits of the value on log domains,
12 digits below the larger bound on linear ones), so that decoding an encoded one returns it
exactly; those that a user gives are left as they are. Grids are exact: `low + k step` in decimal
arithmetic, rounded once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtr, ndtri

from strategies.plain import numbers_of, python_number

# Significant digits of a value that is decoded.
_DIGITS = 12
# A trial may report a tuned value that went through float32; it may stand this far outside.
_SLACK = 1e-6
# Integers have so many bits in NumPy.
_BITS = 64


def _fail(path: str, expected: str, received: Any) -> ValueError:
    shown = repr(received)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ValueError(f"{path!r}: expected {expected}, received {shown}")


def numbers(
    value: Any, path: str, expected: str, shape: tuple[int, ...], *, finite: bool = True
) -> np.ndarray:
    """An array of floats from numbers of any library.

    **Raises:** `ValueError` naming `path` for another shape, and for what is no (finite) number.
    """
    array = numbers_of(value)
    if array is None:
        raise _fail(path, expected, value)
    if array.shape != shape:
        raise _fail(path, expected, f"shape {array.shape}")
    if array.dtype.kind == "b" or (finite and not np.all(np.isfinite(array))):
        raise _fail(path, expected, value)
    return array.astype(float)


def _number(value: Any, path: str, expected: str) -> float:
    """A finite number from a scalar of any library."""
    number = python_number(value)
    if number is None or isinstance(number, bool) or not -math.inf < number < math.inf:
        raise _fail(path, expected, value)
    if isinstance(number, int) and number.bit_length() > _BITS:
        raise _fail(path, expected, value)
    return number


def _check_spread(domain: Any) -> None:
    if domain.spread is None:
        return
    spread = _bound(domain.spread, "spread", float)
    if spread <= 0:
        raise _fail("spread", "a positive number", domain.spread)
    if domain.default is None:
        raise _fail("default", "a value, because spread is the prior's width around it", None)
    object.__setattr__(domain, "spread", spread)


def _around(uniform: np.ndarray, centre: np.ndarray, spread: float | None) -> np.ndarray:
    """Quantiles of a normal distribution truncated to [0, 1]; uniform if there is no spread."""
    uniform = np.asarray(uniform, float)
    if spread is None:
        return uniform
    low, high = ndtr((0.0 - centre) / spread), ndtr((1.0 - centre) / spread)
    return np.clip(centre + spread * ndtri(low + uniform * (high - low)), 0.0, 1.0)


def _bound(value: Any, name: str, kind: type) -> Any:
    number = _number(value, name, "a finite number")
    if kind is int and number != int(number):
        raise _fail(name, "an integer", value)
    return kind(number)


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not low < high:
        raise ValueError(f"low: expected a number below high={high!r}, received {low!r}")
    if log and low <= 0:
        raise ValueError(f"low: expected a positive number because log=True, received {low!r}")


def same(a: Any, b: Any) -> bool:
    """Equality of choices: `1`, `1.0` and `True` differ; a list is as good as a tuple (JSON)."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.generic):
        a = a.item()
    if isinstance(b, np.generic):
        b = b.item()
    if type(a) is not type(b):
        return False
    try:
        return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
    except ValueError:  # arrays
        return a is b


@dataclass(frozen=True, kw_only=True)
class Domain(ABC):
    """The values that one hyperparameter may take.

    - `default`: the value to start from; the middle of the domain if not given.
    - `when`: conditions under which the hyperparameter exists: a mapping from the path of a
      discrete hyperparameter to the value, or list of values, that it must have.
    """

    default: Any = None
    when: Mapping[str, Any] = field(default_factory=dict)

    #: The domain's name in JSON.
    kind: ClassVar[str] = ""

    @property
    def differentiable(self) -> bool:
        """Whether a derivative with respect to the value makes sense."""
        return False

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of unit coordinates."""

    @property
    def uniforms(self) -> int:
        """Number of uniform variates that `draw` takes."""
        return self.size

    @property
    def count(self) -> float:
        """Number of values; infinite for a continuum."""
        return math.inf

    @property
    def tunable(self) -> bool:
        """Whether there is more than one value."""
        return self.count > 1

    def every(self) -> Iterable[Any]:
        """All values, in order, of a domain whose `count` is finite."""
        raise NotImplementedError

    @abstractmethod
    def check(self, value: Any, path: str) -> Any:
        """The canonical form of a value; `ValueError` naming `path` if it is not in the domain."""

    @abstractmethod
    def encode(self, value: Any) -> np.ndarray:
        """Unit coordinates of a canonical value."""

    @abstractmethod
    def decode(self, unit: np.ndarray) -> Any:
        """The canonical value nearest to unit coordinates (which are clipped to [0, 1])."""

    def snap(self, units: np.ndarray) -> np.ndarray:
        """The encoding of the nearest value for each row of unit coordinates, shape `(n, size)`."""
        if self.differentiable:
            return np.clip(units, 0.0, 1.0)
        rows = [self.encode(self.decode(row)) for row in units]
        return np.reshape(rows, (len(units), self.size))

    def draw(self, uniform: np.ndarray) -> Any:
        """The value at a quantile: uniform variates in, a value of the prior out."""
        return self.decode(uniform)

    def log_prior(self, units: np.ndarray) -> np.ndarray:
        """Logarithm of the prior's density, for each row of unit coordinates `(n, size)`.

        Zero at the likeliest value, and everywhere where nothing was said (`spread`, `weights`).
        """
        return np.zeros(len(units))

    def log_prior_slope(self, unit: np.ndarray) -> np.ndarray:
        """Its derivative in unit coordinates, of a differentiable domain, at one place."""
        return np.zeros(self.size)

    def uninformed(self) -> "Domain":
        """The domain without what was said of its best value."""
        return self

    def pull_back(self, value: Any, gradient: np.ndarray) -> np.ndarray:
        """Derivative in unit coordinates from the derivative in natural values."""
        raise NotImplementedError

    def middle(self) -> Any:
        """The default, or the value in the middle of the domain."""
        return self.decode(np.full(self.size, 0.5)) if self.default is None else self.default

    def likeliest(self) -> Any:
        """The value at which `log_prior` is zero."""
        return self.middle()

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._arguments()})"

    def _arguments(self) -> str:
        parts = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "when":
                continue
            empty = isinstance(value, tuple) and not value
            if value is not None and value is not False and not empty:
                shown = value if isinstance(value, str) else repr(value)
                parts.append(f"{item.name}={shown if len(shown) <= 40 else shown[:37] + '...'}")
        return ", ".join(parts)

    def _settle_default(self) -> None:
        if self.default is not None:
            object.__setattr__(self, "default", self.check(self.default, "default"))


class Normal(Domain):
    """What has a normal prior around its default, of the width `spread` (`None`: a uniform one)."""

    spread: float | None

    def log_prior(self, units: np.ndarray) -> np.ndarray:
        """See `Domain.log_prior`."""
        if self.spread is None:
            return np.zeros(len(units))
        away = (units - self.encode(self.default)) / self.spread
        return np.asarray(-0.5 * np.sum(away**2, axis=1))

    def log_prior_slope(self, unit: np.ndarray) -> np.ndarray:
        """See `Domain.log_prior_slope`."""
        if self.spread is None:
            return np.zeros(self.size)
        return (self.encode(self.default) - unit) / self.spread**2

    def uninformed(self) -> Domain:
        """See `Domain.uninformed`."""
        changed = {"spread": None}
        return self if self.spread is None else replace(self, **changed)  # type: ignore[arg-type]
