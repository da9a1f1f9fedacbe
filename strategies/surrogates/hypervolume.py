"""Hypervolume in two objectives, both minimised, and its expected improvement.

The hypervolume is the area that a set of points dominates up to a reference point; it grows exactly
when the Pareto front moves. For two independent normal beliefs its expected improvement is a sum
over the strips between neighbouring points of the front (Emmerich, Deutz & Yevseyeva 2011; Yang et
al. 2019): in the strip `a < y₁ < b`, of ceiling `c`, the gain is the width of
`[max(y₁, a), b]` times the depth `(c - y₂)₊`, and the expectation of a product of independent
factors is the product of their expectations.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def pareto_front(points: Matrix) -> Matrix:
    """The rows that no other row dominates, by ascending first objective, without repetitions."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(np.r_[np.inf, ordered[:-1, 1]])
    return ordered[ordered[:, 1] < lowest]


def hypervolume(points: Matrix, reference: Vector) -> float:
    """Area dominated by the rows of `points`, up to `reference`.

    **Arguments:**

    - `points`: `(n, 2)`, both objectives minimised; rows beyond the reference count nothing.
    - `reference`: `(2,)`.
    """
    front = pareto_front(points[np.all(points < reference, axis=1)])
    right = np.r_[front[1:, 0], reference[0]]
    return float(np.sum((right - front[:, 0]) * (reference[1] - front[:, 1])))


def expected_improvement(
    mean: Matrix, deviation: Matrix, points: Matrix, reference: Vector
) -> Vector:
    """Expected growth of the hypervolume of `points` by one more point.

    **Arguments:**

    - `mean`, `deviation`: `(m, 2)`, beliefs about the objectives of `m` candidates.
    - `points`: `(n, 2)`, what was observed; may be empty.
    - `reference`: `(2,)`.
    """
    front = pareto_front(points[np.all(points < reference, axis=1)])
    left = np.r_[-np.inf, front[:, 0]]
    right = np.r_[front[:, 0], reference[0]]
    ceiling = np.r_[reference[1], front[:, 1]]
    depth = _expected_below(mean[:, 1:], deviation[:, 1:], ceiling)
    up_to_right = _expected_below(mean[:, :1], deviation[:, :1], right)
    up_to_left = _expected_below(mean[:, :1], deviation[:, :1], left)
    return np.sum((up_to_right - up_to_left) * depth, axis=1)


def _expected_below(mean: Matrix, deviation: Matrix, level: Vector) -> Matrix:
    """`E (level - y)₊`, zero for a level of minus infinity."""
    finite = np.where(np.isfinite(level), level, 0.0)
    z = (finite - mean) / deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.where(np.isfinite(level), deviation * (z * ndtr(z) + density), 0.0)
