"""Hypervolume of several objectives, all minimised, and its expected improvement.

The hypervolume is what a set of points dominates up to a reference point; it grows exactly when the
Pareto front moves. What it does not dominate is cut into boxes `(l, u)`, by slices of the first
objective, each of them cut by slices of the second among the points that dominate there, and so on.
A new point `y` adds `∏ (uᵢ - max(lᵢ, yᵢ))₊` of each, and the expectation of a product of
independent factors is the product of their expectations: for independent normal beliefs the
expected improvement is exact for any number of objectives (Emmerich, Deutz & Yevseyeva 2011; Yang
et al. 2019). An objective may also be log-normal: a model of its logarithm, and volumes in its own
units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from strategies.surrogates.acquisition import expected_improvement as below

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Products of candidates and boxes that are held in memory at a time.
_ENTRIES = 4_000_000
#: Members of a front that boxes are made of: with three objectives there are up to half the square
#: of them, with four a sixth of the cube.
_MEMBERS = {1: 1000, 2: 1000, 3: 60, 4: 24}


def dominated(points: Matrix) -> NDArray[np.bool_]:
    """Mask of the rows that another row is better than: nowhere worse, and somewhere better."""
    beaten = np.zeros(len(points), bool)
    for i, point in enumerate(points):
        beaten[i] = np.any(np.all(points <= point, axis=1) & np.any(points < point, axis=1))
    return beaten


def pareto_front(points: Matrix) -> Matrix:
    """The rows that no other row dominates, by ascending first objective, without repetitions."""
    if points.shape[1] != 2:
        return np.unique(points[~dominated(points)], axis=0)
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(np.r_[np.inf, ordered[:-1, 1]])
    return ordered[ordered[:, 1] < lowest]


def hypervolume(points: Matrix, reference: Vector) -> float:
    """What the rows of `points` dominate, up to `reference`.

    **Arguments:**

    - `points`: `(n, m)`, all objectives minimised; rows beyond the reference count nothing.
    - `reference`: `(m,)`.
    """
    front = points[np.all(points < reference, axis=1)]
    if not len(front):
        return 0.0
    if front.shape[1] == 1:
        return float(reference[0] - front.min())
    front = pareto_front(front)
    cuts = np.unique(front[:, 0])
    widths = np.diff(np.r_[cuts, reference[0]])
    return float(
        sum(
            width * hypervolume(front[front[:, 0] <= cut, 1:], reference[1:])
            for cut, width in zip(cuts, widths, strict=True)
        )
    )


def boxes(front: Matrix, reference: Vector) -> tuple[Matrix, Matrix]:
    """Lower and upper corners of disjoint boxes: all below the reference that is not dominated.

    **Arguments:**

    - `front`: `(n, m)`, below the reference; may be empty.

    **Returns:** Two arrays of shape `(k, m)`; the lower corners are minus infinity at the edge.
    """
    if len(reference) == 1:
        top = min(front[:, 0].min(initial=np.inf), reference[0])
        return np.array([[-np.inf]]), np.array([[top]])
    cuts = np.unique(front[:, 0])
    lower, upper = [], []
    for left, right in zip(np.r_[-np.inf, cuts], np.r_[cuts, reference[0]], strict=True):
        inner = front[front[:, 0] <= left, 1:]
        if len(inner) and len(reference) > 2:
            inner = pareto_front(inner)
        low, high = boxes(inner, reference[1:])
        lower.append(np.c_[np.full(len(low), left), low])
        upper.append(np.c_[np.full(len(high), right), high])
    return np.concatenate(lower), np.concatenate(upper)


@dataclass(frozen=True)
class Improvement:
    """Expected growth of a hypervolume by one more point. Build one with `improvement`.

    - `levels`: of each objective, ascending, minus infinity first.
    - `lower`, `upper`: `(k, m)`, corners of boxes, as positions in `levels`.
    - `logs`: the beliefs are those of the logarithm of an objective.
    """

    levels: tuple[Vector, ...]
    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    logs: tuple[bool, ...]

    def __call__(self, mean: Matrix, deviation: Matrix) -> Vector:
        """For `n` beliefs, shapes `(n, m)`, what is expected of each."""
        chunk = max(_ENTRIES // max(len(self.lower), 1), 1)
        found = [
            self._few(mean[i : i + chunk], deviation[i : i + chunk])
            for i in range(0, len(mean), chunk)
        ]
        return np.concatenate(found) if found else np.empty(0)

    def _few(self, mean: Matrix, deviation: Matrix) -> Vector:
        product = np.ones((len(mean), len(self.lower)))
        for i, levels in enumerate(self.levels):
            under = _under(self.logs[i])(mean[:, i : i + 1], deviation[:, i : i + 1], levels)
            product *= under[:, self.upper[:, i]] - under[:, self.lower[:, i]]
        return product.sum(axis=1)

    def slopes(self, mean: Vector, deviation: Vector) -> tuple[float, Vector, Vector]:
        """For one belief: its value, and the derivatives by means and deviations, each `(m,)`."""
        factors: list[Vector] = []
        by_mean: list[Vector] = []
        by_deviation: list[Vector] = []
        for i, levels in enumerate(self.levels):
            log = self.logs[i]
            at = mean[None, i : i + 1], deviation[None, i : i + 1], levels
            to_mean, to_deviation = (_log_slopes if log else _slopes)(*at)
            for found, under in (
                (factors, _under(log)(*at)[0]),
                (by_mean, to_mean[0]),
                (by_deviation, to_deviation[0]),
            ):
                found.append(under[self.upper[:, i]] - under[self.lower[:, i]])
        total = float(np.prod(factors, axis=0).sum())
        one = np.ones(len(self.lower))
        others = [
            np.prod([one, *factors[:i], *factors[i + 1 :]], axis=0) for i in range(len(factors))
        ]
        return (
            total,
            np.array([float(s @ o) for s, o in zip(by_mean, others, strict=True)]),
            np.array([float(s @ o) for s, o in zip(by_deviation, others, strict=True)]),
        )


def improvement(
    points: Matrix, reference: Vector, logs: Sequence[bool] | None = None
) -> Improvement:
    """What one more point is expected to add to the hypervolume of `points`.

    **Arguments:**

    - `points`: `(n, m)`, what was observed; may be empty. Of a front with many members those that
      are far from each other stand for all.
    - `reference`: `(m,)`.
    - `logs`: the objectives whose logarithm is modelled, which are positive; `points` and
      `reference` hold the objectives themselves. Default: none.
    """
    front = pareto_front(points[np.all(points < reference, axis=1)])
    front = _spread(front, _MEMBERS.get(len(reference), 16))
    low, high = boxes(front, reference)
    levels, lower, upper = [], [], []
    for i in range(len(reference)):
        known = np.unique(np.r_[low[:, i], high[:, i]])
        levels.append(known)
        lower.append(np.searchsorted(known, low[:, i]))
        upper.append(np.searchsorted(known, high[:, i]))
    return Improvement(
        tuple(levels),
        np.stack(lower, axis=1),
        np.stack(upper, axis=1),
        tuple(logs or [False] * len(reference)),
    )


def _spread(front: Matrix, most: int) -> Matrix:
    """At most so many members, the best in each objective first, then always the farthest."""
    if len(front) <= most:
        return front
    sides = np.maximum(np.ptp(front, axis=0), 1e-300)
    chosen = list(dict.fromkeys(front.argmin(axis=0).tolist()))
    away = np.full(len(front), np.inf)
    for i in range(most):
        if i == len(chosen):
            chosen.append(int(np.argmax(away)))
        away = np.minimum(away, np.linalg.norm((front - front[chosen[i]]) / sides, axis=1))
    return front[np.sort(chosen)]


def _under(log: bool) -> Callable[[Matrix, Matrix, Vector], Matrix]:
    return _expected_below_log if log else _expected_below


def _expected_below(mean: Matrix, deviation: Matrix, level: Vector) -> Matrix:
    """`E (level - y)₊`, zero for a level of minus infinity."""
    known = np.isfinite(level)
    return np.where(known, below(mean, deviation, np.where(known, level, 0.0)), 0.0)


def _slopes(mean: Matrix, deviation: Matrix, level: Vector) -> tuple[Matrix, Matrix]:
    """Its derivatives by mean and deviation: `-Φ(z)` and `φ(z)`."""
    z = (level - mean) / deviation
    known = np.isfinite(level)
    density = np.exp(-0.5 * np.where(known, z, 0.0) ** 2) / np.sqrt(2 * np.pi)
    return np.where(known, -ndtr(z), 0.0), np.where(known, density, 0.0)


def _log_parts(mean: Matrix, deviation: Matrix, level: Vector) -> tuple[Matrix, Matrix, Matrix]:
    positive = np.where(level > 0, level, 1.0)
    z = (np.log(positive) - mean) / deviation
    whole = np.exp(np.minimum(mean + 0.5 * deviation**2, 700.0))
    return positive, z, whole


def _expected_below_log(mean: Matrix, deviation: Matrix, level: Vector) -> Matrix:
    """`E (level - exp y)₊` for a normal `y` (Black & Scholes 1973), zero for a level below zero."""
    positive, z, whole = _log_parts(mean, deviation, level)
    expected = positive * ndtr(z) - whole * ndtr(z - deviation)
    return np.where(level > 0, np.maximum(expected, 0.0), 0.0)


def _log_slopes(mean: Matrix, deviation: Matrix, level: Vector) -> tuple[Matrix, Matrix]:
    """Its derivatives by mean and deviation."""
    positive, z, whole = _log_parts(mean, deviation, level)
    part = whole * ndtr(z - deviation)
    density = positive * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.where(level > 0, -part, 0.0), np.where(level > 0, density - deviation * part, 0.0)
