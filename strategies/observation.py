"""What passes between a searcher and whoever runs the trials."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from strategies.plain import number_of
from strategies.trial_report import Report, report

if TYPE_CHECKING:
    from strategies.space import Point

Status = Literal["complete", "failed", "pruned"]


#: What an observation computes once, of its point; it is not pickled.
_DERIVED = ("slope", "size", "violation", "slopes", "constraint_slopes")

#: Of what is not NaN.
_largest = functools.partial(np.fmax.reduce, initial=0.0)


class _Located:
    """What has a configuration, and once that was checked its point in the space."""

    point: "Point | None"

    @property
    def unit(self) -> np.ndarray:
        """Unit coordinates of the configuration, shape `(space.dimension,)`, read-only.

        **Raises:** `ValueError` if the configuration was not checked.
        """
        if self.point is None:
            raise ValueError("unit: expected a configuration that was checked (SearchSpace.point)")
        return self.point.unit

    def __getstate__(self) -> dict[str, Any]:
        # A point belongs to its process; `propose` checks again what has none.
        return {k: v for k, v in self.__dict__.items() if k not in _DERIVED} | {"point": None}


@dataclass(frozen=True)
class Suggestion(_Located):
    """A configuration to try.

    - `number`: position in the search, from 0; with the seed it determines all randomness.
    - `config`: nested dict of plain Python values (lists for array-valued floats).
    - `note`: the searcher's own JSON-safe remark; it comes back with the observation.
    - `point`: the configuration as it was checked, with its unit coordinates; set by `propose`.
    """

    number: int
    config: dict[str, Any]
    note: Mapping[str, Any] = field(default_factory=dict)
    point: "Point | None" = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Observation(_Located):
    """What came of a configuration. Values are minimised; an engine's adapter flips the sign.

    - `config`: the configuration that was evaluated: the suggested one, or the one that the trial
      tuned it into.
    - `value`: the objective; NaN, infinite or `None` makes the observation `failed`.
    - `gradient`: derivative of `value` with respect to the configuration's natural values, nested
      or flat (`"a/b"`), partial: keys without a derivative are left out.
    - `gradient_error`: estimated relative error of the gradient, if known.
    - `cost`: seconds (or another unit) that the trial took.
    - `resource`: epochs, steps or samples that it was given.
    - `number`: the suggestion's number; `None` for a point that was not suggested.
    - `note`: the suggestion's note.
    - `values`: of a search with several objectives, in their order, all minimised; `value` is the
      first. One that is not finite makes the observation `failed`.
    - `gradients`: of each of `values`, or nothing.
    - `constraints`: name to value; the configuration is feasible if none is above 0. NaN
      counts as violated by an unknown amount.
    - `constraint_gradients`: of some of `constraints`, by name, each like `gradient`.
    - `point`: the configuration as it was checked, with its unit coordinates; set by whoever checks
      the observation, and always there in what a searcher's `_propose` is given.
    """

    config: Mapping[str, Any]
    value: float | None
    gradient: Mapping[str, Any] | None = None
    gradient_error: float | None = None
    cost: float | None = None
    resource: float | None = None
    status: Status = "complete"
    number: int | None = None
    note: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    gradients: tuple[Mapping[str, Any] | None, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    constraint_gradients: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    point: "Point | None" = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def slope(self) -> np.ndarray | None:
        """The gradient in unit coordinates, NaN where nothing is known; `None` if there is none.

        Read-only, computed once, of a checked observation.
        """
        return self._pulled_back(self.gradient)

    @functools.cached_property
    def slopes(self) -> tuple[np.ndarray | None, ...]:
        """`slope` of each of `values`; nothing if no gradients were reported."""
        return tuple(self._pulled_back(gradient) for gradient in self.gradients)

    @functools.cached_property
    def constraint_slopes(self) -> dict[str, np.ndarray]:
        """`slope` of each constraint that has a gradient, by name."""
        found = {n: self._pulled_back(g) for n, g in self.constraint_gradients.items()}
        return {name: slope for name, slope in found.items() if slope is not None}

    def _pulled_back(self, gradient: Mapping[str, Any] | None) -> np.ndarray | None:
        if self.point is None or not gradient:
            return None
        slope = self.point.space.pull_back(self.point, gradient)
        slope.flags.writeable = False
        return slope

    @functools.cached_property
    def violation(self) -> float:
        """The sum of what the constraints have above 0: how far from feasible this is."""
        return sum(max(c, 0.0) if c == c else math.inf for c in self.constraints.values())

    @property
    def feasible(self) -> bool:
        """Whether no constraint is violated."""
        return self.violation == 0

    @property
    def rank(self) -> tuple[float, float]:
        """The smaller, the better: the least violation first, then the smallest value."""
        if self.status == "failed" or self.value is None:
            return math.inf, math.inf
        return self.violation, self.value

    @functools.cached_property
    def size(self) -> float:
        """The largest absolute value of the values and their slopes."""
        slopes = [slope for slope in (self.slope, *self.slopes) if slope is not None]
        known = () if self.value is None or self.status == "failed" else (self.value, *self.values)
        return max(
            max(map(abs, known), default=0.0),
            max((float(_largest(np.abs(slope))) for slope in slopes), default=0.0),
        )

    def as_report(self) -> Report:
        """What a trial with this result would have reported, of a search that minimises."""
        return Report(
            self.value,
            self.gradient,
            self.gradient_error,
            cost=self.cost,
            resource=self.resource,
            values=self.values or None,
            gradients=self.gradients or None,
            constraints=self.constraints or None,
            constraint_gradients=self.constraint_gradients or None,
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", number_of(self.value, "value"))
        if not isinstance(self.values, list | tuple):
            raise ValueError(f"'values': expected a tuple of numbers, received {self.values!r:.80}")
        if self.values:
            values = tuple(number_of(each, "values") for each in self.values)
            usable = all(each is not None and math.isfinite(each) for each in values)
            object.__setattr__(self, "values", values)
            object.__setattr__(self, "value", values[0] if usable else None)
        usable = self.value is not None and math.isfinite(self.value)
        if self.status == "complete" and not usable:
            object.__setattr__(self, "status", "failed")


__all__ = ["Observation", "Report", "Status", "Suggestion", "report"]
