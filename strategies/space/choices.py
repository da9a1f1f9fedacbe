"""Choices: one of several values, with an order or without, or a single one."""

import contextlib
import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from strategies.space.domains import Domain, Normal, _around, _bound, _check_spread, _fail, same

#: The odds of a choice of weight zero against the weightiest one: it can come back.
_UNLIKELY = 1e-12


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


class Listed(Domain):
    """What has a list of values: with an order, or without."""

    @property
    @abstractmethod
    def options(self) -> Sequence[Any]:
        """All values, in the order that the user has given them."""

    @functools.cached_property
    def _places(self) -> _Places:
        return _Places(self.options)

    @property
    def count(self) -> float:
        """See `Domain.count`."""
        return len(self.options)

    def every(self) -> Sequence[Any]:
        """See `Domain.every`."""
        return self.options

    def index(self, value: Any, path: str = "value") -> int:
        """Position of a value."""
        found = self._places.find(value)
        if found is not None:
            return found
        raise _fail(path, f"one of {list(self.options)!r}", value)

    def check(self, value: Any, path: str) -> Any:
        """See `Domain.check`."""
        return self.options[self.index(value, path)]


@dataclass(frozen=True)
class Categorical(Listed):
    """One of several values without an order.

    **Arguments:**

    - `choices`: the values, compared with their types (`1`, `1.0` and `True` differ).
    - `weights`: prior probabilities for sampling, any positive scale; equal if not given.
    - `default`: the value to start from; the first (or weightiest) choice if not given.
    """

    choices: Sequence[Any]
    weights: Sequence[float] | None = None

    kind: ClassVar[str] = "categorical"

    @property
    def options(self) -> Sequence[Any]:
        """See `Domain.options`."""
        return self.choices

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

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        unit = np.zeros(self.size)
        unit[self.index(value) : self.index(value) + 1] = 1.0
        return unit

    def decode(self, unit: np.ndarray) -> Any:
        """The choice with the largest coordinate."""
        return self.choices[int(np.argmax(unit)) if self.size else 0]

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See `Domain.snap`."""
        snapped = np.zeros((len(units), self.size))
        snapped[np.arange(len(units)), np.argmax(units, axis=1)] = 1.0
        return snapped

    def draw(self, uniform: np.ndarray) -> Any:
        """By the weights."""
        if not self.size:
            return self.choices[0]
        edges = np.cumsum(np.ones(self.size) if self.weights is None else self.weights)
        at = np.searchsorted(edges, float(uniform[0]) * edges[-1], side="right")
        return self.choices[min(int(at), self.size - 1)]

    def log_prior(self, units: np.ndarray) -> np.ndarray:
        """By the weights; a weight of zero counts as a very small one."""
        if self.weights is None or not self.size:
            return np.zeros(len(units))
        share = np.array(self.weights) / max(self.weights)
        return np.asarray(np.log(np.maximum(share, _UNLIKELY))[np.argmax(units, axis=1)])

    def uninformed(self) -> "Categorical":
        """See `Domain.uninformed`."""
        return self if self.weights is None else replace(self, weights=None)

    def middle(self) -> Any:
        """The default, or the weightiest choice."""
        if self.default is not None:
            return self.default
        return self.choices[0 if self.weights is None else int(np.argmax(self.weights))]

    def likeliest(self) -> Any:
        """The weightiest choice, whatever the default is."""
        return self.middle() if self.weights is None else self.choices[int(np.argmax(self.weights))]


@dataclass(frozen=True)
class Ordinal(Listed, Normal):
    """One of several values in a meaningful order, such as batch sizes or model sizes.

    **Arguments:**

    - `values`: the values in order; neighbours are close to each other for every searcher.
    - `spread`: as in `Float`.
    """

    values: Sequence[Any]
    spread: float | None = None

    kind: ClassVar[str] = "ordinal"

    @property
    def options(self) -> Sequence[Any]:
        """See `Domain.options`."""
        return self.values

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _check_choices(self.values, "values"))
        self._settle_default()
        _check_spread(self)

    @property
    def size(self) -> int:
        """One coordinate; none for a single value."""
        return 1 if len(self.values) > 1 else 0

    def encode(self, value: Any) -> np.ndarray:
        """Centre of the value's interval."""
        return np.array([(self.index(value) + 0.5) / len(self.values)])[: self.size]

    def decode(self, unit: np.ndarray) -> Any:
        """See `Domain.decode`."""
        if not self.size:
            return self.values[0]
        position = float(np.clip(np.asarray(unit, float).reshape(()), 0.0, 1.0))
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]

    def draw(self, uniform: np.ndarray) -> Any:
        """Uniform, or normal around the default."""
        centre = np.zeros(1) if self.default is None else self.encode(self.default)
        return self.decode(_around(uniform, centre, self.spread))

    def snap(self, units: np.ndarray) -> np.ndarray:
        """See `Domain.snap`."""
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
        """See `Domain.every`."""
        return (self.value,)

    def check(self, value: Any, path: str) -> Any:
        """See `Domain.check`."""
        if not same(value, self.value):
            raise _fail(path, f"the constant {self.value!r}", value)
        return self.value

    def encode(self, value: Any) -> np.ndarray:
        """See `Domain.encode`."""
        return np.empty(0)

    def decode(self, unit: np.ndarray) -> Any:
        """See `Domain.decode`."""
        return self.value
