"""One hyperparameter of ours as parameters of Optuna: its names, and the values on both sides."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strategies.plain import plain, shown, to_json_values
from strategies.space import Categorical, Constant, Domain, Float, Int
from strategies.space.choices import Listed


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter and the parameters of Optuna that hold it; here, the same numbers.

    - `domain`: where we search.
    - `names`: in Optuna, one for each entry.
    - `distribution`: of each entry.
    - `former`: names under which older versions of this library have stored it.
    """

    domain: Domain
    names: tuple[str, ...]
    distribution: BaseDistribution
    former: tuple[str, ...] = ()

    def stored(self, value: Any) -> list[Any]:
        """Optuna's values, by name."""
        return list(np.ravel(value).tolist())

    def value(self, stored: Sequence[Any]) -> Any:
        """Ours, from Optuna's; what is outside is found by whoever checks the configuration."""
        if isinstance(self.domain, Float) and self.domain.shape:
            return np.reshape(stored, self.domain.shape).tolist()
        return stored[0]

    def slope(self, value: Any, gradient: Any) -> Any:
        """A derivative with respect to ours, from that with respect to Optuna's."""
        del value
        return gradient


@dataclass(frozen=True)
class Labelled(Parameter):
    """Choices, each with a label that every storage brings back."""

    labels: Sequence[Any] = ()

    @functools.cached_property
    def _table(self) -> Categorical:
        return Categorical(self.labels)

    def reported(self, stored: Any) -> Any:
        """The choice of which a report's JSON holds what it could."""
        assert isinstance(self.domain, Listed)
        texts = [to_json_values(shown(plain(choice))) for choice in self.domain.options]
        return self.domain.options[texts.index(stored)] if texts.count(stored) == 1 else stored

    def stored(self, value: Any) -> list[Any]:
        """See the base class."""
        assert isinstance(self.domain, Listed)
        return [self.labels[self.domain.index(value)]]

    def value(self, stored: Sequence[Any]) -> Any:
        """See the base class."""
        assert isinstance(self.domain, Listed)
        return self.domain.options[self._table.index(stored[0], self.names[0])]


@dataclass(frozen=True)
class Numbered(Parameter):
    """Choices by their position: those that are no domain of ours, such as two that are equal."""

    def stored(self, value: Any) -> list[Any]:
        """See the base class."""
        assert isinstance(self.distribution, CategoricalDistribution)
        return [self.distribution.choices[value]]

    def value(self, stored: Sequence[Any]) -> Any:
        """See the base class."""
        return int(self.distribution.to_internal_repr(stored[0]))


@dataclass(frozen=True)
class Coordinate(Parameter):
    """A position in [0, 1] for ranges that no domain of ours has.

    They are wider than the largest number, hold more than 10^9 values, or are narrow beside their
    distance from zero.
    """

    def stored(self, value: Any) -> list[Any]:
        """See the base class."""
        value, one = float(value), self.distribution
        assert isinstance(one, FloatDistribution | IntDistribution)
        if one.log:
            found: Any = math.exp(self._low * (1.0 - value) + self._high * value)
            found = round(found) if isinstance(one, IntDistribution) else found
        elif one.step is not None:
            place = min(int(Fraction(value) * self._count), self._count - 1)
            found = _exact(one.low) + place * _exact(one.step)
        else:
            found = one.low * (1.0 - value) + one.high * value
        if isinstance(one, IntDistribution):
            # Storages keep a float of it; one that stays the same is found again.
            found = int(float(int(found))) if abs(found) > 2**53 else int(found)
        else:
            found = float(found)
        return [min(max(found, one.low), one.high)]

    def value(self, stored: Sequence[Any]) -> Any:
        """See the base class."""
        one, found = self.distribution, stored[0]
        assert isinstance(one, FloatDistribution | IntDistribution)
        if one.log:
            return (math.log(found) - self._low) / (self._high - self._low)
        if one.step is not None:
            place = round((_exact(found) - _exact(one.low)) / _exact(one.step))
            return float((place + Fraction(1, 2)) / self._count)
        # Halves, since the width itself may be no finite number.
        return (found / 2 - one.low / 2) / (one.high / 2 - one.low / 2)

    def slope(self, value: Any, gradient: Any) -> Any:
        """See the base class."""
        one = self.distribution
        if not isinstance(one, FloatDistribution) or one.step is not None:
            return None
        width = self.stored(value)[0] * (self._high - self._low) if one.log else one.high - one.low
        return np.asarray(gradient, float) * width

    @property
    def _low(self) -> float:
        one: Any = self.distribution
        return math.log(one.low - 0.5 if isinstance(one, IntDistribution) else one.low)

    @property
    def _high(self) -> float:
        one: Any = self.distribution
        return math.log(one.high + 0.5 if isinstance(one, IntDistribution) else one.high)

    @property
    def _count(self) -> int:
        one: Any = self.distribution
        return int((_exact(one.high) - _exact(one.low)) / _exact(one.step)) + 1


def from_domain(path: str, domain: Domain) -> Parameter:
    """The parameters of a hyperparameter of a space.

    **Raises:** `ValueError` naming the path for what Optuna cannot express.
    """
    if isinstance(domain, Listed):
        labels = _labels(domain.options)
        return Labelled(domain, (path,), CategoricalDistribution(labels), labels=labels)
    free = None if isinstance(domain, Float) else 1
    if isinstance(domain, Float | Int) and domain.log and domain.step != free:
        raise ValueError(f"{path!r}: Optuna has no logarithmic grid; use Ordinal")
    if isinstance(domain, Int):
        number = IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
        return Parameter(domain, (path,), number)
    if not isinstance(domain, Float):
        raise ValueError(f"{path!r}: Optuna has no distribution for {domain}")
    entries = list(np.ndindex(*domain.shape))
    return Parameter(
        domain,
        tuple(path + "".join(f".{i}" for i in entry) for entry in entries),
        FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step),
        tuple(path + "".join(f"[{i}]" for i in entry) for entry in entries) if domain.shape else (),
    )


def from_distribution(
    distribution: BaseDistribution, names: tuple[str, ...], shape: tuple[int, ...]
) -> Parameter:
    """A hyperparameter for a parameter of Optuna, or for several that are one array.

    **Raises:** `ValueError` for a distribution that is none of Optuna's own.
    """
    try:
        domain = to_domain(distribution, shape)
        if _fits(distribution):
            if isinstance(distribution, CategoricalDistribution):
                return Labelled(domain, names, distribution, labels=distribution.choices)
            return Parameter(domain, names, distribution)
    except ValueError:
        if not isinstance(
            distribution, CategoricalDistribution | FloatDistribution | IntDistribution
        ):
            raise
    if isinstance(distribution, CategoricalDistribution):
        return Numbered(Categorical(range(len(distribution.choices))), names, distribution)
    return Coordinate(Float(0.0, 1.0, shape=shape), names, distribution)


def to_domain(distribution: BaseDistribution, shape: tuple[int, ...] = ()) -> Domain:
    """The domain of a distribution.

    **Raises:** `ValueError` if there is none.
    """
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(list(distribution.choices))
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        if distribution.single():
            return Constant(np.full(shape, low).tolist())
        return Float(low, high, log=distribution.log, shape=shape, step=distribution.step)
    if isinstance(distribution, IntDistribution):
        if distribution.single():
            return Constant(distribution.low)
        return Int(
            distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    raise ValueError(f"expected one of Optuna's own distributions, received {distribution!r}")


def _fits(distribution: BaseDistribution) -> bool:
    """Whether the numbers of a range are finite that its domain computes with."""
    if not isinstance(distribution, FloatDistribution):
        return True
    low, high = distribution.low, distribution.high
    return math.isfinite(high / low if distribution.log else high - low)


def _labels(choices: Sequence[Any]) -> list[Any]:
    """What stands for each choice in Optuna: itself if every storage brings it back unchanged."""
    labels = [_label(choice) for choice in choices]
    if len({repr(label) for label in labels}) < len(labels):
        labels = [f"{i}: {label}" for i, label in enumerate(labels)]
    return labels


def _label(choice: Any) -> Any:
    # A member of an enumeration comes back as its number or its text.
    for kind in (bool, int, float):
        if isinstance(choice, kind):
            return kind(choice)
    if isinstance(choice, str):
        return str.__str__(choice)
    return None if choice is None else repr(choice)


def _exact(number: Any) -> Fraction:
    """A number as it was written: 0.1 is a tenth."""
    return Fraction(number) if isinstance(number, int) else Fraction(Decimal(repr(float(number))))
