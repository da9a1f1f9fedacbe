"""Where a tuned loss jumps or bends as a function of one hyperparameter.

The value at the inner solution is smooth only as long as the solution keeps its structure: the same
units alive, the same constraints binding, the same of several minima. Where that changes, the dual
function has a kink or a jump, and a gradient method stops short of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from hypergrad.expected import require_count, require_function, require_number

# By how many medians a cell must stand out to be looked into.
_PROMINENT = 8.0
# What a break must keep of its size over the last halvings; a smooth function loses half or more
# with each of them.
_KEPT, _HALVINGS = 0.5, 3


@dataclass(frozen=True)
class Break:
    """A place where the function is not smooth.

    - `kind`: `"jump"`: the value is not continuous; `"kink"`: its derivative is not.
    - `low`, `high`: between these, at most `width` apart.
    - `height`: how much the value (the derivative) changes there.
    """

    kind: Literal["jump", "kink"]
    low: float
    high: float
    height: float

    @property
    def at(self) -> float:
        """The middle."""
        return (self.low + self.high) / 2


class _Sample(NamedTuple):
    at: float
    value: float
    slope: float


def find_breaks(
    function: Callable[[float], tuple[float, float]],
    low: float,
    high: float,
    *,
    points: int = 101,
    width: float = 1e-4,
) -> list[Break]:
    """Jumps and kinks of a function of one hyperparameter, by bisection.

    The function is sampled at `points` places. A cell stands out if its values differ by more than
    the slopes at its ends explain, or if its slopes differ, by far more than in the median cell. It
    is halved, the half that stands out more kept, until it is `width` wide. What has kept its size
    over the last halvings is a break: steep but smooth places lose theirs as the cell shrinks. Two
    breaks in one cell are found as one; those smaller than the bends of a typical cell are not
    found: raise `points`.

    **Arguments:**

    - `function`: `function(λ) -> (value, slope)`: the outer loss at the inner solution and its
      hypergradient, as floats; compile it. A slope that does not belong to the value (a biased
      hypergradient) shows as breaks everywhere.
    - `low`, `high`: where to look.
    - `points`: places to start from, at least 5. Default 101.
    - `width`: how closely to locate. Default 1e-4.

    **Returns:** the breaks, from low to high. It costs `points`, and for each cell that stands out
    `log2((high − low) / (points − 1) / width)`, evaluations.

    **Raises:** `ValueError` for an empty interval, or a value that is not finite (naming where).
    """
    require_function("find_breaks", "function", function)
    require_count("find_breaks", "points", points, 5)
    for name, value in (("low", low), ("high", high), ("width", width)):
        require_number("find_breaks", name, value)
    if not low < high or not width > 0:
        raise ValueError(
            "find_breaks: expected low < high, points >= 5 and width > 0, received "
            f"{low}, {high}, {points} and {width}."
        )

    def sample(at: float) -> _Sample:
        value, slope = (float(x) for x in function(at))
        if not (math.isfinite(value) and math.isfinite(slope)):
            raise ValueError(
                f"find_breaks: expected finite numbers, received value {value} and slope {slope} "
                f"at {at:.6g}."
            )
        return _Sample(at, value, slope)

    gap = (high - low) / (points - 1)
    grid = [sample(low + i * gap) for i in range(points)]
    cells = list(pairwise(grid))
    found = []
    measures: list[tuple[Literal["jump", "kink"], Callable[[_Sample, _Sample], float]]] = [
        ("jump", _unexplained),
        ("kink", _bend),
    ]
    taken: list[tuple[float, float]] = []
    for kind, measure in measures:
        sizes = [measure(*cell) for cell in cells]
        typical = sorted(sizes)[len(sizes) // 2]
        noise = _rounding(grid, gap if kind == "kink" else 1.0)
        for cell, size in zip(cells, sizes, strict=True):
            if size <= max(_PROMINENT * typical, noise) or _inside(cell, taken):
                continue
            left, right, sizes_seen = _bisected(*cell, measure, sample, width)
            earlier = sizes_seen[max(0, len(sizes_seen) - 1 - _HALVINGS)]
            if sizes_seen[-1] >= _KEPT * earlier and sizes_seen[-1] > noise:
                found.append(Break(kind, left.at, right.at, sizes_seen[-1]))
                taken.append((cell[0].at, cell[1].at))
    return sorted(found, key=lambda one: one.low)


def _unexplained(left: _Sample, right: _Sample) -> float:
    """What the mean slope does not explain of the change of the value."""
    mean = (left.slope + right.slope) / 2
    return abs(right.value - left.value - mean * (right.at - left.at))


def _bend(left: _Sample, right: _Sample) -> float:
    return abs(right.slope - left.slope)


def _inside(cell: tuple[_Sample, _Sample], taken: Sequence[tuple[float, float]]) -> bool:
    """A jump bends the slopes around it: one break a cell."""
    return any(low <= cell[0].at and cell[1].at <= high for low, high in taken)


def _bisected(
    left: _Sample,
    right: _Sample,
    measure: Callable[[_Sample, _Sample], float],
    sample: Callable[[float], _Sample],
    width: float,
) -> tuple[_Sample, _Sample, list[float]]:
    """The narrow cell, and the measure after each halving."""
    seen = [measure(left, right)]
    while right.at - left.at > width:
        middle = sample((left.at + right.at) / 2)
        if measure(left, middle) >= measure(middle, right):
            right = middle
        else:
            left = middle
        seen.append(measure(left, right))
    return left, right, seen


def _rounding(grid: Sequence[_Sample], unit: float) -> float:
    """Differences of this size are rounding errors (of float32, to be safe) of the values."""
    return 1e-5 * max(abs(s.value) for s in grid) / unit
