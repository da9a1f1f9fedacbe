"""Hypervolume in two objectives, both minimised, and its expected improvement.

The hypervolume is the area that a set of points dominates up to a reference point; it grows exactly
when the Pareto front moves. For two independent normal beliefs its expected improvement is a sum
over the strips between neighbouring points of the front (Emmerich, Deutz & Yevseyeva 2011; Yang et
al. 2019): in the strip `a < y₁ < b`, of ceiling `c`, the gain is the width of
`[max(y₁, a), b]` times the depth `(c - y₂)₊`, and the expectation of a product of independent
factors is the product of their expectations. The first objective may also be log-normal: a model of
its logarithm, and areas in its own units.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from strategies.surrogates.acquisition import expected_improvement as below

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
    mean: Matrix,
    deviation: Matrix,
    points: Matrix,
    reference: Vector,
    *,
    log_first: bool = False,
) -> Vector:
    """Expected growth of the hypervolume of `points` by one more point.

    **Arguments:**

    - `mean`, `deviation`: `(m, 2)`, beliefs about the objectives of `m` candidates.
    - `points`: `(n, 2)`, what was observed; may be empty.
    - `reference`: `(2,)`.
    - `log_first`: `mean` and `deviation` are those of the logarithm of the first objective, which
      is positive; `points` and `reference` hold the objective itself.
    """
    front = pareto_front(points[np.all(points < reference, axis=1)])
    below_first = _expected_below_log if log_first else _expected_below
    left = np.r_[-np.inf, front[:, 0]]
    right = np.r_[front[:, 0], reference[0]]
    ceiling = np.r_[reference[1], front[:, 1]]
    depth = _expected_below(mean[:, 1:], deviation[:, 1:], ceiling)
    up_to_right = below_first(mean[:, :1], deviation[:, :1], right)
    up_to_left = below_first(mean[:, :1], deviation[:, :1], left)
    return np.sum((up_to_right - up_to_left) * depth, axis=1)


def _expected_below(mean: Matrix, deviation: Matrix, level: Vector) -> Matrix:
    """`E (level - y)₊`, zero for a level of minus infinity."""
    known = np.isfinite(level)
    return np.where(known, below(mean, deviation, np.where(known, level, 0.0)), 0.0)


def _expected_below_log(mean: Matrix, deviation: Matrix, level: Vector) -> Matrix:
    """`E (level - exp y)₊` for a normal `y` (Black & Scholes 1973), zero for a level below zero."""
    positive = np.where(level > 0, level, 1.0)
    z = (np.log(positive) - mean) / deviation
    whole = np.exp(np.minimum(mean + 0.5 * deviation**2, 700.0))
    expected = positive * ndtr(z) - whole * ndtr(z - deviation)
    return np.where(level > 0, np.maximum(expected, 0.0), 0.0)
