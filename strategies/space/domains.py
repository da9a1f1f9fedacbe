"""Domains: what values one hyperparameter may take, and its unit coordinates.

Every domain maps its values to `size` coordinates in [0, 1] and back. The map is affine in the
value (linear domains) or in its logarithm (`log=True`); a categorical is one-hot. Values are
*canonical*: plain Python numbers that survive JSON and any engine's storage unchanged. Floats that
a searcher decodes are rounded to a decimal grid (12 significant digits of the value on log domains,
12 digits below the larger bound on linear ones), so that decoding an encoded one returns it
exactly; those that a user gives are left as they are. Grids are exact: `low + k step` in decimal
arithmetic, rounded once.
"""

import contextlib
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtr, ndtri

_DIGITS = 12
# A trial may report a tuned value that went through float32; it may stand this far outside.
_SLACK = 1e-6
# Rounding errors of `low + k * step` in the caller's own arithmetic, in units of the last place.
_ULPS = 4


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
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged lists
        raise _fail(path, expected, value) from None
    if array.shape != shape:
        raise _fail(path, expected, f"shape {array.shape}")
    if array.dtype.kind not in "iuf" or (finite and not np.all(np.isfinite(array))):
        raise _fail(path, expected, value)
    return array.astype(float)


def _number(value: Any, path: str, expected: str) -> float:
    """A finite number from a Python, NumPy or JAX scalar."""
    if isinstance(value, bool | np.bool_ | str | bytes) or value is None:
        raise _fail(path, expected, value)
    try:
        array = np.asarray(value)
        if array.shape != () or array.dtype.kind not in "iuf" or not np.isfinite(array):
            raise _fail(path, expected, value)
    except (TypeError, ValueError, OverflowError):
        raise _fail(path, expected, value) from None
    return value if type(value) in (int, float) else array.item()


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

    def pull_back(self, value: Any, gradient: np.ndarray) -> np.ndarray:
        """Derivative in unit coordinates from the derivative in natural values."""
        raise NotImplementedError

    def middle(self) -> Any:
        """The default, or the value in the middle of the domain."""
        return self.decode(np.full(self.size, 0.5)) if self.default is None else self.default

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


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not low < high:
        raise ValueError(f"low: expected a number below high={high!r}, received {low!r}")
    if log and low <= 0:
        raise ValueError(f"low: expected a positive number because log=True, received {low!r}")


@dataclass(frozen=True)
class Float(Domain):
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
        """See the base class."""
        return math.inf if self.step is None else float(self._last + 1) ** self.size

    def every(self) -> Iterable[Any]:
        """See the base class."""
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
        """See the base class."""
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
        """See the base class."""
        array = np.asarray(value, float).ravel()
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            unit = (np.log(array) - low) / (high - low)
        else:
            unit = (array - self.low) / (self.high - self.low)
        return np.clip(unit, 0.0, 1.0)

    def decode(self, unit: np.ndarray) -> Any:
        """See the base class."""
        unit = np.clip(np.asarray(unit, float), 0.0, 1.0).reshape(self.shape)
        return self._canonical(self._natural(unit)).tolist()

    def _natural(self, unit: np.ndarray) -> np.ndarray:
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return np.exp(low + unit * (high - low))
        # Exact at both ends, unlike low + unit * (high - low).
        return self.low * (1.0 - unit) + self.high * unit

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See the base class."""
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
class Int(Domain):
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
        """See the base class."""
        return self._last + 1

    @property
    def values(self) -> range:
        """All values."""
        return range(self.low, self.high + 1, self.step)

    def every(self) -> Iterable[Any]:
        """See the base class."""
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
        """See the base class."""
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
        """See the base class."""
        if self.log:
            low, high = self._log_edges()
            return np.array([(math.log(value) - low) / (high - low)])
        return np.array([((value - self.low) // self.step + 0.5) / (self._last + 1)])

    def decode(self, unit: np.ndarray) -> int:
        """See the base class."""
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
        """See the base class."""
        units = np.clip(units, 0.0, 1.0)
        if not self.log:
            index = np.minimum(np.floor(units * (self._last + 1)), self._last)
            return (index + 0.5) / (self._last + 1)
        low, high = self._log_edges()
        index = np.rint((np.exp(low + units * (high - low)) - self.low) / self.step)
        value = self.low + self.step * np.clip(index, 0, self._last)
        return (np.log(value) - low) / (high - low)


def _key(value: Any) -> Any:
    """What two choices share exactly if they are `same`; `TypeError` if one cannot be hashed."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return list, *map(_key, value)
    if isinstance(value, Mapping):
        return dict, frozenset((key, _key(item)) for key, item in value.items())
    if isinstance(value, float) and math.isnan(value):
        return float, "nan"
    hash(value)
    return type(value), value


@dataclass
class _Places:
    """Where each choice stands: looked up, or searched for among choices without a hash."""

    choices: Sequence[Any] = field(compare=False)
    known: dict[Any, int] | None = None

    def __post_init__(self) -> None:
        with contextlib.suppress(TypeError):
            self.known = {_key(choice): i for i, choice in enumerate(self.choices)}

    def find(self, value: Any) -> int | None:
        """The position of a value, `None` if it is no choice."""
        if self.known is None:
            return next((i for i, choice in enumerate(self.choices) if same(value, choice)), None)
        try:
            return self.known.get(_key(value))
        except TypeError:
            return None


def _check_choices(choices: Any, name: str) -> tuple[Any, ...]:
    if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Sequence | np.ndarray):
        raise _fail(name, "a list of choices", choices)
    listed = tuple(item.item() if isinstance(item, np.generic) else item for item in choices)
    if not listed:
        raise _fail(name, "at least one choice", list(choices))
    places = _Places(listed)
    for i, choice in enumerate(listed):
        if places.find(choice) != i:
            raise _fail(name, "choices that differ", choice)
        if isinstance(choice, Domain):
            raise _fail(name, "plain values (strategies.space.Choice nests domains)", choice)
    return listed


@dataclass(frozen=True)
class Categorical(Domain):
    """One of several values without an order.

    **Arguments:**

    - `choices`: the values, compared with their types (`1`, `1.0` and `True` differ).
    - `weights`: prior probabilities for sampling, any positive scale; equal if not given.
    - `default`: the value to start from; the first (or weightiest) choice if not given.
    """

    choices: Sequence[Any]
    weights: Sequence[float] | None = None

    kind: ClassVar[str] = "categorical"

    @functools.cached_property
    def _places(self) -> _Places:
        return _Places(self.choices)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "choices", _check_choices(self.choices, "choices"))
        if self.weights is not None:
            if isinstance(self.weights, str) or not isinstance(self.weights, Iterable):
                raise _fail("weights", f"{len(self.choices)} weights >= 0", self.weights)
            weights = tuple(_bound(w, "weights", float) for w in self.weights)
            if len(weights) != len(self.choices) or min(weights) < 0 or sum(weights) <= 0:
                raise _fail("weights", f"{len(self.choices)} weights >= 0", self.weights)
            put(self, "weights", weights)
        self._settle_default()

    @property
    def size(self) -> int:
        """One-hot: a coordinate per choice; none for a single choice."""
        return len(self.choices) if len(self.choices) > 1 else 0

    @property
    def uniforms(self) -> int:
        """One."""
        return min(self.size, 1)

    @property
    def count(self) -> float:
        """See the base class."""
        return len(self.choices)

    def every(self) -> Iterable[Any]:
        """See the base class."""
        return self.choices

    def index(self, value: Any, path: str = "value") -> int:
        """Position of a choice."""
        found = self._places.find(value)
        if found is not None:
            return found
        raise _fail(path, f"one of {list(self.choices)!r}", value)

    def check(self, value: Any, path: str) -> Any:
        """See the base class."""
        return self.choices[self.index(value, path)]

    def encode(self, value: Any) -> np.ndarray:
        """See the base class."""
        return np.eye(len(self.choices))[self.index(value)][: self.size]

    def decode(self, unit: np.ndarray) -> Any:
        """The choice with the largest coordinate."""
        return self.choices[int(np.argmax(unit)) if self.size else 0]

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See the base class."""
        return np.eye(self.size)[np.argmax(units, axis=1)]

    def draw(self, uniform: np.ndarray) -> Any:
        """By the weights."""
        if not self.size:
            return self.choices[0]
        edges = np.cumsum(np.ones(self.size) if self.weights is None else self.weights)
        at = np.searchsorted(edges, float(uniform[0]) * edges[-1], side="right")
        return self.choices[min(int(at), self.size - 1)]

    def middle(self) -> Any:
        """The default, or the weightiest choice."""
        if self.default is not None:
            return self.default
        return self.choices[0 if self.weights is None else int(np.argmax(self.weights))]


@dataclass(frozen=True)
class Ordinal(Domain):
    """One of several values in a meaningful order, such as batch sizes or model sizes.

    **Arguments:**

    - `values`: the values in order; neighbours are close to each other for every searcher.
    - `spread`: as in `Float`.
    """

    values: Sequence[Any]
    spread: float | None = None

    kind: ClassVar[str] = "ordinal"

    @functools.cached_property
    def _places(self) -> _Places:
        return _Places(self.values)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _check_choices(self.values, "values"))
        self._settle_default()
        _check_spread(self)

    @property
    def size(self) -> int:
        """One coordinate; none for a single value."""
        return 1 if len(self.values) > 1 else 0

    @property
    def count(self) -> float:
        """See the base class."""
        return len(self.values)

    def every(self) -> Iterable[Any]:
        """See the base class."""
        return self.values

    def index(self, value: Any, path: str = "value") -> int:
        """Position of a value."""
        found = self._places.find(value)
        if found is not None:
            return found
        raise _fail(path, f"one of {list(self.values)!r}", value)

    def check(self, value: Any, path: str) -> Any:
        """See the base class."""
        return self.values[self.index(value, path)]

    def encode(self, value: Any) -> np.ndarray:
        """Centre of the value's interval."""
        return np.array([(self.index(value) + 0.5) / len(self.values)])[: self.size]

    def decode(self, unit: np.ndarray) -> Any:
        """See the base class."""
        if not self.size:
            return self.values[0]
        position = float(np.clip(np.asarray(unit, float).reshape(()), 0.0, 1.0))
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]

    def draw(self, uniform: np.ndarray) -> Any:
        """Uniform, or normal around the default."""
        centre = np.zeros(1) if self.default is None else self.encode(self.default)
        return self.decode(_around(uniform, centre, self.spread))

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See the base class."""
        index = np.floor(np.clip(units, 0.0, 1.0) * len(self.values))
        return (np.minimum(index, len(self.values) - 1) + 0.5) / len(self.values)


@dataclass(frozen=True)
class Constant(Domain):
    """A value that is not tuned but belongs to every configuration."""

    value: Any

    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        if self.default is not None:
            raise _fail("default", "nothing, a constant is its own default", self.default)
        if isinstance(self.value, np.generic):
            object.__setattr__(self, "value", self.value.item())

    @property
    def size(self) -> int:
        """None."""
        return 0

    @property
    def count(self) -> float:
        """One."""
        return 1

    def every(self) -> Iterable[Any]:
        """See the base class."""
        return (self.value,)

    def check(self, value: Any, path: str) -> Any:
        """See the base class."""
        if not same(value, self.value):
            raise _fail(path, f"the constant {self.value!r}", value)
        return self.value

    def encode(self, value: Any) -> np.ndarray:
        """See the base class."""
        return np.empty(0)

    def decode(self, unit: np.ndarray) -> Any:
        """See the base class."""
        return self.value
