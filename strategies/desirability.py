"""Several objectives in one number: desirability functions.

Each response is mapped to a desirability in [0, 1], 0 where it is unacceptable and 1 where it could
not be better; the overall desirability is their (weighted) geometric mean (Derringer & Suich 1980;
for hyperparameters Bartz-Beielstein 2025). A searcher minimises `1 - D`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


def _check(name: str, low: float, high: float, shape: float) -> None:
    if not low < high:
        raise ValueError(f"{name}: expected bounds in ascending order, received {low}, {high}")
    if not shape > 0:
        raise ValueError(f"{name}: expected a positive shape, received {shape}")


@dataclass(frozen=True)
class Larger:
    """Desirable when large: 0 at `worst` and below, 1 at `best` and above.

    - `shape`: exponent in between; above 1 it insists on values close to `best`.
    """

    worst: float
    best: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        _check("Larger", self.worst, self.best, self.shape)

    def __call__(self, response: float) -> float:
        """Desirability of a response."""
        share = (response - self.worst) / (self.best - self.worst)
        return min(max(share, 0.0), 1.0) ** self.shape


@dataclass(frozen=True)
class Smaller:
    """Desirable when small: 1 at `best` and below, 0 at `worst` and above."""

    best: float
    worst: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        _check("Smaller", self.best, self.worst, self.shape)

    def __call__(self, response: float) -> float:
        """Desirability of a response."""
        share = (self.worst - response) / (self.worst - self.best)
        return min(max(share, 0.0), 1.0) ** self.shape


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


Desirability = Larger | Smaller | Target


@dataclass(frozen=True)
class OverallDesirability:
    """Geometric mean of the desirabilities of several responses.

    **Arguments:**

    - `responses`: mapping from the name of a response to its desirability function.
    - `weights`: relative importance by name, positive; 1 where not given.
    - `floor`: replaces a desirability below it. A zero anywhere makes the mean zero whatever the
      rest, a plateau on which no searcher finds its way; a small floor keeps a slope.

    **Raises:** `ValueError` naming the response for a weight that is not positive or whose name is
    unknown.
    """

    responses: Mapping[str, Desirability]
    weights: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.01

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

    def __call__(self, measured: Mapping[str, float]) -> float:
        """Overall desirability, in [0, 1]; a response that is not finite counts as unacceptable.

        **Raises:** `ValueError` naming a response that was not measured.
        """
        total, logs = 0.0, 0.0
        for name, function in self.responses.items():
            if name not in measured:
                raise ValueError(f"{name!r}: expected a measured response, received nothing")
            response = float(measured[name])
            part = function(response) if math.isfinite(response) else 0.0
            part = max(part, self.floor)
            if part == 0:
                return 0.0
            weight = self.weights.get(name, 1.0)
            total += weight
            logs += weight * math.log(part)
        return math.exp(logs / total)

    def loss(self, measured: Mapping[str, float]) -> float:
        """What a searcher minimises: `1 - D`."""
        return 1.0 - self(measured)
