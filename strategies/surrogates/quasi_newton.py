"""A quasi-Newton model of a function, the region in which it is believed, and its minimiser there.

The model is `g·s + s·Bs/2` with the limited-memory BFGS matrix of some pairs (Byrd, Lu, Nocedal and
Zhu, SIAM J. Sci. Comput. 16, 1995). A step minimises it over the box of the unit cube, within a
`Region` of two numbers: the radius, twice the longest step that has been worth taking, and the cut,
by which steps from the same point are shortened until one succeeds. A cut divides the steps by
multiplying `B`: the region is the ellipsoid of a bound on `s·Bs` (Conn, Gould and Toint,
Trust-Region Methods, 2000, section 6.7), a line search along the model's own step, whatever the
scales of the coordinates. A failure takes nothing from the steps that come after the next success.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Pair(NamedTuple):
    """A difference of two points, and that of their gradients, of positive curvature `s·y`."""

    s: Vector
    y: Vector


@dataclass(frozen=True)
class Rules:
    """The constants of the steps.

    - `curvature`: least cosine of the angle between `s` and `y`; below it rounding decides.
    - `good`: from this ratio of actual to predicted decrease on, a step at the edge of the region
      widens it (Conn, Gould and Toint 2000, section 6.1, between their two thresholds).
    - `edge`: a step of this share of the radius is one at the edge, as the conjugate gradients may
      stop before it.
    - `widening`: of the radius (the same section).
    - `shortest`, `longest`: bounds of what interpolation leaves of a step that failed (Dennis and
      Schnabel, Numerical Methods for Unconstrained Optimization, 1983, section 6.3.2).
    - `predicted`: so many of the latest pairs choose the kind of the first matrix; more would cost
      time, fewer would be chance.
    - `decided`: share of the squared gradient that the conjugate gradients may leave, and `settled`
      the share of the decrease: a millionth of a step is less than its model knows.
    """

    curvature: float = 1e-6
    good: float = 0.5
    edge: float = 0.8
    widening: float = 2.0
    shortest: float = 0.1
    longest: float = 0.5
    predicted: int = 5
    decided: float = 1e-12
    settled: float = 1e-6


RULES = Rules()


def pair(s: Vector, y: Vector, noise: float = 0.0) -> Pair | None:
    """The pair, or `None` if its curvature is negative or not to be told from rounding.

    **Arguments:**

    - `noise`: norm of what may be wrong in `y`.
    """
    size = float(np.linalg.norm(s)) * max(float(np.linalg.norm(y)), noise)
    return Pair(s, y) if float(s @ y) > RULES.curvature * size else None


class Model:
    """The matrix `B` of some pairs as an operator, at first a multiple of the identity."""

    def __init__(self, first: float, size: int, pairs: Sequence[Pair] = ()):
        self.first = first
        # Rank-two updates, oldest pair first: `B v = first v + Pᵀ P v - Mᵀ M v`.
        self.plus = self.minus = np.empty((0, size))
        plus, minus = (np.empty((len(pairs), size)) for _ in range(2))
        count = 0
        for s, y in pairs:
            bs = self._updated(s)
            if not (curvature := float(s @ bs)) > 0:
                continue
            plus[count], minus[count] = y / np.sqrt(s @ y), bs / np.sqrt(curvature)
            count += 1
            self.plus, self.minus = plus[:count], minus[:count]
        # In few dimensions the matrix itself is less work than its parts.
        few = size <= 2 * count
        self.matrix = (
            first * np.eye(size) + self.plus.T @ self.plus - self.minus.T @ self.minus
            if few
            else None
        )

    def __call__(self, v: Vector) -> Vector:
        """`B v`."""
        return self._updated(v) if self.matrix is None else self.matrix @ v

    def _updated(self, v: Vector) -> Vector:
        return self.first * v + (self.plus @ v) @ self.plus - (self.minus @ v) @ self.minus


def first_matrix(pairs: Sequence[Pair]) -> float:
    """The multiple of the identity that would have predicted the latest pairs better.

    Two are compared, each from the pairs before the predicted one: the curvature along the last
    step, with which directions not yet explored get long steps, where scales differ by orders of
    magnitude; and the geometric mean of those along all steps, where many directions are alike.
    """
    units = [1.0 / np.sqrt(float(s @ y)) for s, y in pairs]
    s = np.array([unit * one.s for unit, one in zip(units, pairs, strict=True)])
    y = np.array([unit * one.y for unit, one in zip(units, pairs, strict=True)])
    lengths, across = s @ s.T, s @ y.T
    logs = -np.log(np.diag(lengths))
    lasts, means = np.exp(logs), np.exp(np.cumsum(logs) / np.arange(1, len(logs) + 1))

    def surprise(first: float, count: int) -> float:
        """How wrong the logarithm of the next pair's curvature, which is 1, is predicted.

        By the compact form of the matrix (Byrd, Nocedal and Schnabel, Math. Programming 63, 1994,
        theorem 2.3), of which inner products are all that is needed.
        """
        known = slice(count)
        middle = np.block(
            [
                [first * lengths[known, known], np.tril(across[known, known], -1)],
                [np.tril(across[known, known], -1).T, -np.eye(count)],
            ]
        )
        side = np.r_[first * lengths[known, count], across[count, known]]
        try:
            curvature = first * lengths[count, count] - side @ np.linalg.solve(middle, side)
        except np.linalg.LinAlgError:
            curvature = 0.0
        return abs(float(np.log(max(curvature, np.finfo(float).tiny))))

    later = range(max(1, len(pairs) - RULES.predicted), len(pairs))
    by_last, by_mean = (
        sum(surprise(float(kind[j - 1]), j) for j in later) for kind in (lasts, means)
    )
    return float(lasts[-1] if by_last <= by_mean else means[-1])


def model_of(gradient: Vector, pairs: Sequence[Pair], radius: float) -> Model:
    """The model of some pairs, oldest first; with none, the step goes to the region's edge."""
    if not pairs:
        return Model(float(np.max(np.abs(gradient), initial=0.0)) / radius, len(gradient))
    return Model(first_matrix(pairs), len(gradient), pairs)


class Outcome(NamedTuple):
    """What became of a step.

    - `length`: its largest entry.
    - `predicted`, `actual`: decreases; the actual one is minus infinity where the trial failed.
    - `slope`, `end`: along the step where it begins, negative, and where it ends; NaN if not known.
    """

    length: float
    predicted: float
    actual: float
    slope: float = np.nan
    end: float = np.nan

    def shortened(self) -> float:
        """The share of a step that failed after which the function is expected to be lowest.

        A cubic through both values and slopes, and a parabola without the last slope, agree if the
        function is one: the cubic's minimum if it is the nearer, else the mean of both (Moré and
        Thuente, ACM Trans. Math. Software 20, 1994, section 4, case 1).
        """
        rise, slope, end = -self.actual, self.slope, self.end
        curved = 2.0 * (rise - slope)
        share = -slope / curved if np.isfinite(curved) and curved > 0 else RULES.shortest
        theta = 3.0 * -rise + slope + end
        root = theta**2 - slope * end
        if np.isfinite(root) and root >= 0 and rise > 0:
            gamma = float(np.sqrt(root))
            cubic = (gamma - slope + theta) / (2.0 * gamma - slope + end)
            share = cubic if cubic < share else 0.5 * (cubic + share)
        return float(np.clip(share, RULES.shortest, RULES.longest))


@dataclass(frozen=True)
class Region:
    """Where the model is believed: steps of at most `radius` in any entry, shortened by `cut`."""

    radius: float
    cut: float = 1.0

    def after(self, outcome: Outcome) -> "Region":
        """The region for the next step from where this one ended: a whole one, perhaps a wider."""
        good = outcome.actual > RULES.good * outcome.predicted
        if not good or outcome.length < RULES.edge * self.radius:
            return Region(self.radius)
        return Region(max(self.radius, min(RULES.widening * outcome.length, 1.0)))

    def shortened(self, outcome: Outcome) -> "Region":
        """The region for another step from where this one failed."""
        return replace(self, cut=self.cut * outcome.shortened())


class Step(NamedTuple):
    """A step and the decrease that the model predicts for it."""

    s: Vector
    decrease: float


def step(unit: Vector, gradient: Vector, model: Model, region: Region) -> Step:
    """The minimiser of the model within the unit cube and the region.

    **Arguments:**

    - `unit`: `(d,)`, where the step begins.
    - `gradient`: `(d,)`, there.
    """
    if not gradient.any():
        return Step(np.zeros_like(unit), 0.0)
    bound = region.radius * region.cut
    low, high = np.maximum(-bound, -unit), np.minimum(bound, 1.0 - unit)
    return box_minimum(gradient, model, region.cut, low, high)


def box_minimum(gradient: Vector, model: Model, cut: float, low: Vector, high: Vector) -> Step:
    """Minimise `g·s + s·Bs / (2 cut)` for `low <= s <= high`: conjugate gradients, free variables.

    Whenever a conjugate-gradient path leaves the box, its end is projected and the variables on a
    bound that want to stay there are held; the loop ends when no variable changes its side.
    """
    size_of_gradient = float(gradient @ gradient)
    s, predicted = np.zeros_like(gradient), 0.0
    for _ in range(20):
        slope = gradient + model(s) / cut
        held = ((s <= low) & (slope >= 0)) | ((s >= high) & (slope <= 0))
        free = ~held
        residual = np.where(free, -slope, 0.0)
        size = float(residual @ residual)
        if size <= RULES.decided**2 * size_of_gradient:
            break
        start = s
        d, p = np.zeros_like(s), residual
        for _ in range(2 * len(model.plus) + 10):
            curved = np.where(free, model(p) / cut, 0.0)
            length = size / float(p @ curved)
            d = d + length * p
            residual = residual - length * curved
            new = float(residual @ residual)
            outside = np.any((start + d < low) | (start + d > high))
            if new <= RULES.decided * size_of_gradient or outside:
                break
            p = residual + new / size * p
            size = new
        # Project; halve the path until the model decreases (projection may bend it upwards).
        length = 1.0
        for _ in range(20):
            trial = np.clip(start + length * d, low, high)
            after = float(gradient @ trial + 0.5 * (trial @ model(trial)) / cut)
            if after < predicted:
                break
            length *= 0.5
        else:
            break
        gained, s, predicted = predicted - after, trial, after
        if gained <= RULES.settled * abs(after):
            break
    return Step(s, -predicted)
