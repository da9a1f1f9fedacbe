"""Observations as the hypergradient searcher sees them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strategies.observation import Observation
from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.move import Move
from strategies.space import SearchSpace


@dataclass(frozen=True, eq=False)
class Point:
    """An observation in unit coordinates.

    - `name`: the suggestion's number; what nobody suggested is known by its coordinates.
    - `value`: infinite where the trial failed.
    - `gradient`: NaN where nothing is known.
    - `error`: relative, of the gradient.
    - `active`: mask of the coordinates that the configuration has.
    """

    name: int
    unit: np.ndarray
    value: float
    gradient: np.ndarray
    error: float
    active: np.ndarray
    move: Move | None

    @property
    def chain(self) -> int:
        """The chain that the point belongs to."""
        return self.name if self.move is None else self.move.chain


def point_of(observation: Observation) -> Point:
    """A checked observation as a point; a gradient whose error is 1 or more is left out."""
    unit, slope, located = observation.unit, observation.slope, observation.point
    assert located is not None
    error = observation.gradient_error
    error = 0.0 if error is None or np.isnan(error) else max(float(error), 0.0)
    complete = observation.status == "complete"
    usable = complete and slope is not None and error < 1.0
    number = observation.number
    return Point(
        name=-1 - zlib.crc32(unit.tobytes()) if number is None else number,
        unit=unit,
        value=float(observation.value) if complete else np.inf,  # type: ignore[arg-type]
        gradient=slope if usable else np.full(len(unit), np.nan),  # type: ignore[arg-type]
        error=error,
        active=located.space.active_mask(located),
        move=Move.of(observation.note),
    )


def smooth(points: Sequence[Point]) -> list[Point]:
    """The points, those gradients left out that say nothing beyond their own neighbourhood.

    Behind the edge of stability a training is chaotic: slopes grow exponentially, values do not.
    """
    values = [point.value for point in points if np.isfinite(point.value)]
    if not values:
        return list(points)
    steepest = CONSTANTS.steepest * (max(values) - min(values))

    def explodes(point: Point) -> bool:
        return float(np.max(np.abs(np.nan_to_num(point.gradient)), initial=0.0)) > steepest > 0.0

    nothing = np.full_like(points[0].gradient, np.nan)
    return [replace(p, gradient=nothing) if explodes(p) else p for p in points]


def informative(space: SearchSpace, known: Sequence[Point]) -> np.ndarray:
    """Mask of the coordinates that gradients say something about.

    A gradient that is zero everywhere, as that of a learning rate by implicit differentiation,
    says nothing; one entry of an array may be zero for good reasons.
    """
    seen = np.zeros(space.dimension, bool)
    for point in known:
        seen |= np.nan_to_num(point.gradient) != 0.0
    for where in space.slices.values():
        seen[where] = seen[where].any()
    return seen


def trusted(known: Sequence[Point]) -> bool:
    """Whether the gradients seen predict the differences of the values seen.

    The trapezoidal rule along a chain's steps gets the sign of nearly every difference right if the
    gradients are those of the values, and of every second one if they are noise.
    """
    by_name = {point.name: point for point in known}
    shortest: dict[int, tuple[float, float]] = {}
    for point in known:
        base = None if point.move is None else by_name.get(point.move.base)  # type: ignore[arg-type]
        if base is None or base is point:
            continue
        slope = np.nan_to_num(0.5 * (base.gradient + point.gradient))
        agreed = float(slope @ (point.unit - base.unit)) * (point.value - base.value)
        # A step over a ripple is wrong until it is short enough: the shortest from a place counts.
        length = float(np.max(np.abs(point.unit - base.unit)))
        if agreed and length < shortest.get(base.name, (np.inf, 0.0))[0]:
            shortest[base.name] = length, agreed
    right = sum(agreed > 0 for _, agreed in shortest.values())
    wrong = len(shortest) - right
    return wrong < CONSTANTS.doubts or right > 2 * wrong
