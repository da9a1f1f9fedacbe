"""Several objectives in one number: desirability functions.

Each response is mapped to a desirability in [0, 1], 0 where it is unacceptable and 1 where it could
not be better; the overall desirability is their (weighted) geometric mean (Derringer & Suich 1980;
for hyperparameters Bartz-Beielstein 2025). A searcher minimises `1 - D`. The shapes and options are
those of Kuhn's package `desirability` (2016).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


def _check(name: str, low: float, high: float, shape: float) -> None:
    if not low < high:
        raise ValueError(f"{name}: expected bounds in ascending order, received {low}, {high}")
    if not shape > 0:
        raise ValueError(f"{name}: expected a positive shape, received {shape}")


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected desirabilities in [0, 1], received {value}")


class _Ramp:
    """0 at `worst` and beyond, 1 at `best` and beyond, and a power of the way in between."""

    worst: float
    best: float
    shape: float

    def __call__(self, response: float) -> float:
        """Desirability of a response."""
        share = (response - self.worst) / (self.best - self.worst)
        return min(max(share, 0.0), 1.0) ** self.shape

    @property
    def uninformative(self) -> float:
        """The mean over the range between `worst` and `best`."""
        return 1.0 / (self.shape + 1.0)


@dataclass(frozen=True)
class Larger(_Ramp):
    """Desirable when large: 0 at `worst` and below, 1 at `best` and above.

    - `shape`: exponent in between; above 1 it insists on values close to `best`.
    """

    worst: float
    best: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        _check("Larger", self.worst, self.best, self.shape)


@dataclass(frozen=True)
class Smaller(_Ramp):
    """Desirable when small: 1 at `best` and below, 0 at `worst` and above."""

    best: float
    worst: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        _check("Smaller", self.best, self.worst, self.shape)


@dataclass(frozen=True)
class Target:
    """Desirable close to `target`, unacceptable outside `(low, high)`."""

    low: float
    target: float
    high: float
    shape_below: float = 1.0
    shape_above: float = 1.0

    def __post_init__(self) -> None:
        _check("Target", self.low, self.target, self.shape_below)
        _check("Target", self.target, self.high, self.shape_above)

    def __call__(self, response: float) -> float:
        """Desirability of a response."""
        below = Larger(self.low, self.target, self.shape_below)
        above = Smaller(self.target, self.high, self.shape_above)
        return min(below(response), above(response))

    @property
    def uninformative(self) -> float:
        """The mean over the range from `low` to `high`."""
        below = (self.target - self.low) / (self.shape_below + 1.0)
        above = (self.high - self.target) / (self.shape_above + 1.0)
        return (below + above) / (self.high - self.low)


@dataclass(frozen=True)
class Box:
    """Desirable from `low` to `high`, both included, and nowhere else."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check("Box", self.low, self.high, 1.0)

    def __call__(self, response: float) -> float:
        """Desirability of a response: 0 or 1."""
        return float(self.low <= response <= self.high)

    @property
    def uninformative(self) -> float:
        """A half: in or out."""
        return 0.5


@dataclass(frozen=True)
class Arbitrary:
    """Straight lines through a table, and its first and last desirability outside.

    - `responses`: ascending, two at least.
    - `desirabilities`: at each of them, in [0, 1].
    """

    responses: Sequence[float]
    desirabilities: Sequence[float]

    def __post_init__(self) -> None:
        at = np.asarray(self.responses, float)
        if at.ndim != 1 or len(at) < 2 or not (np.diff(at) > 0).all():
            raise ValueError(
                f"Arbitrary: expected two or more ascending responses, received {self.responses}"
            )
        if len(self.desirabilities) != len(at):
            raise ValueError(
                f"Arbitrary: expected {len(at)} desirabilities, received {self.desirabilities}"
            )
        for value in self.desirabilities:
            _share("Arbitrary", value)

    def __call__(self, response: float) -> float:
        """Desirability of a response."""
        return float(np.interp(response, self.responses, self.desirabilities))

    @property
    def uninformative(self) -> float:
        """The mean over the range of the table."""
        heights = np.asarray(self.desirabilities, float)
        widths = np.diff(np.asarray(self.responses, float))
        return float(widths @ (heights[1:] + heights[:-1]) / 2 / widths.sum())


@dataclass(frozen=True)
class Category:
    """A desirability for each value of a response without an order.

    - `values`: mapping from the values to desirabilities in [0, 1]; any other value is 0.
    """

    values: Mapping[Any, float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Category: expected at least one value, received none")
        for value in self.values.values():
            _share("Category", value)

    def __call__(self, response: Any) -> float:
        """Desirability of a response."""
        return float(self.values.get(response, 0.0))

    @property
    def uninformative(self) -> float:
        """The mean over the values."""
        return float(np.mean(list(self.values.values())))


Desirability = Larger | Smaller | Target | Box | Arbitrary | Category


@dataclass(frozen=True)
class OverallDesirability:
    """Geometric mean of the desirabilities of several responses.

    **Arguments:**

    - `responses`: mapping from the name of a response to its desirability function.
    - `weights`: relative importance by name, positive; 1 where not given.
    - `floor`: replaces a desirability below it. A zero anywhere makes the mean zero whatever the
      rest, a plateau on which no searcher finds its way; a small floor keeps a slope.
    - `tolerances`: floors of single responses by name, in place of `floor`.
    - `missing`: what a response that is `None` or NaN counts as: `"worst"`, so that a failed trial
      is none that anybody wants, or `"uninformative"`, the mean desirability over the range of its
      function, so that a value that was not measured speaks neither for nor against a trial.

    **Raises:** `ValueError` naming the response for a weight that is not positive, a tolerance
    outside [0, 1), or a name that is unknown.
    """

    responses: Mapping[str, Desirability]
    weights: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.01
    tolerances: Mapping[str, float] = field(default_factory=dict)
    missing: Literal["worst", "uninformative"] = "worst"

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError("responses: expected at least one, received none")
        for name, weight in self.weights.items():
            if name not in self.responses:
                raise ValueError(f"{name!r}: expected one of {list(self.responses)} in weights")
            if not weight > 0:
                raise ValueError(f"{name!r}: expected a positive weight, received {weight}")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor: expected a number in [0, 1), received {self.floor}")
        for name, least in self.tolerances.items():
            if name not in self.responses:
                raise ValueError(f"{name!r}: expected one of {list(self.responses)} in tolerances")
            if not 0 <= least < 1:
                raise ValueError(f"{name!r}: expected a tolerance in [0, 1), received {least}")
        if self.missing not in ("worst", "uninformative"):
            raise ValueError(
                f"missing: expected 'worst' or 'uninformative', received {self.missing!r}"
            )

    def __call__(self, measured: Mapping[str, Any]) -> float:
        """Overall desirability, in [0, 1]; an infinite response counts as unacceptable.

        **Raises:** `ValueError` naming a response that was not measured.
        """
        total, logs = 0.0, 0.0
        for name, function in self.responses.items():
            if name not in measured:
                raise ValueError(f"{name!r}: expected a measured response, received nothing")
            part = max(self._part(function, measured[name]), self.tolerances.get(name, self.floor))
            if part == 0:
                return 0.0
            weight = self.weights.get(name, 1.0)
            total += weight
            logs += weight * math.log(part)
        return math.exp(logs / total)

    def _part(self, function: Desirability, response: Any) -> float:
        if isinstance(function, Category) and response is not None and response == response:
            return function(response)
        number = math.nan if response is None else float(response)
        if math.isnan(number):
            return function.uninformative if self.missing == "uninformative" else 0.0
        return function(number) if math.isfinite(number) else 0.0

    def loss(self, measured: Mapping[str, Any]) -> float:
        """What a searcher minimises: `1 - D`."""
        return 1.0 - self(measured)
