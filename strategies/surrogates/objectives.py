"""What is believed of objectives, in their own units, and what one more trial would gain.

A Gaussian process on the logarithm of an objective's distance from a bound below the best value. A
volume in the units of the objectives is then an expectation over log-normal beliefs, which is exact
(`strategies.surrogates.hypervolume`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from strategies.observation import Observation
from strategies.surrogates.derivative_rows import derivative_rows
from strategies.surrogates.feasibility import Feasibility
from strategies.surrogates.gaussian_process import GaussianProcess, Prior, Rows, fit
from strategies.surrogates.hypervolume import Improvement
from strategies.surrogates.outputs import shifted

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Rows that the hyperparameters of a process are fitted to, and rows of its posterior.
_FIT_ROWS = 160
ROWS = 500
#: Values are of interest up to so many times the distance of the median from the best.
_TAIL = 5.0
#: Distances of the bound below the best value that are compared, relative to the least.
_FACTORS = (1.0, 4.0, 16.0, 64.0)
_LEAST = 1e-300
#: The same where there is to be no bend.
_STRAIGHT = 1000.0


@dataclass(frozen=True)
class Objective:
    """One objective: its process, and the way back from what that models, `log(y - low)`."""

    process: GaussianProcess
    low: float
    centre: float
    spread: float

    def belief(self, x: Matrix) -> tuple[Vector, Vector]:
        """Mean and deviation of the logarithm of what is above `low`."""
        mean, deviation = self.process.predict(x)
        return self.centre + self.spread * mean, self.spread * deviation

    def slopes(self, x: Vector, free: NDArray[np.intp]) -> tuple[Vector, Vector, Vector, Vector]:
        """The same at one point, and their derivatives along coordinates."""
        mean, deviation, by_mean, by_deviation = self.process.predict_slopes(x, free)
        spread = self.spread
        return (
            self.centre + spread * mean,
            spread * deviation,
            spread * by_mean,
            (spread * by_deviation),
        )


@dataclass(frozen=True)
class Belief:
    """What is believed of all objectives and constraints, and what one more point would gain.

    - `objectives`: in their order.
    - `gain`: of their hypervolume, above the bound of each.
    - `limits`: the constraints, if there are any.
    - `stretch`: of the unit coordinates.
    """

    objectives: tuple[Objective, ...]
    gain: Improvement
    limits: Feasibility | None
    stretch: Vector

    def score(self, units: Matrix) -> Vector:
        """Logarithm of the gain that is expected at the rows of `units`."""
        x = units * self.stretch
        beliefs = [objective.belief(x) for objective in self.objectives]
        mean = np.stack([mean for mean, _ in beliefs], axis=1)
        deviation = np.stack([deviation for _, deviation in beliefs], axis=1)
        gain = np.log(np.maximum(self.gain(mean, deviation), _LEAST))
        return gain if self.limits is None else self.limits.weigh(gain, x)

    def slope(self, unit: Vector, free: NDArray[np.intp]) -> tuple[float, Vector]:
        """The same at one place, and its derivatives along unit coordinates."""
        x = unit * self.stretch
        found = [objective.slopes(x, free) for objective in self.objectives]
        mean = np.array([float(each[0]) for each in found])
        deviation = np.array([float(each[1]) for each in found])
        gain, by_mean, by_deviation = self.gain.slopes(mean, deviation)
        slope = sum(
            m * each[2] + d * each[3]
            for m, d, each in zip(by_mean, by_deviation, found, strict=True)
        )
        log_gain, slope = np.log(max(gain, _LEAST)), slope / max(gain, _LEAST)
        if self.limits is not None:
            log_gain, slope = self.limits.weigh_slopes(log_gain, slope, x, free)
        return float(log_gain), slope * self.stretch[free]


def believed(
    items: Sequence[Observation],
    values: Vector,
    slopes: Sequence[Vector | None],
    waiting: Matrix,
    stretch: Vector,
    groups: NDArray[np.intp],
    prior: Prior,
) -> tuple[Objective, Vector]:
    """One objective, and its posterior means at all items and at what is waited for.

    **Arguments:**

    - `items`: checked observations.
    - `values`: of the objective; infinite where a trial failed, at least one is not.
    - `slopes`: of the objective, in unit coordinates, where they are known.
    - `waiting`: `(k, dimension)`, unit coordinates of what is being evaluated.
    - `stretch`, `groups`: of the unit coordinates, see `geometry`.
    - `prior`: on the hyperparameters.
    """
    worst = float(values[np.isfinite(values)].max())
    values = np.where(np.isfinite(values), values, worst)
    # Diverged trainings would take all of the range, and are bad enough at the cap.
    middle = float(np.median(values))
    cap = middle + _TAIL * (middle - values.min())
    capped = np.minimum(values, cap) if cap > middle else values
    x = np.stack([item.unit for item in items]) * stretch
    slopes = [
        slope if value == kept else None
        for slope, value, kept in zip(slopes, values, capped, strict=True)
    ]
    errors = [item.gradient_error for item in items]
    candidates = [_bent(capped)]
    if all(slope is None for slope in slopes):
        candidates.append(_straight(capped))
    modelled = [_modelled(x, above, slopes, errors, groups, prior) for above in candidates]
    best = int(np.argmin([each.missed for each in modelled]))
    process, centre, spread, y, _ = modelled[best]
    low = float(capped.min() - candidates[best].min())
    mean, _ = process.predict(x)
    if len(waiting):
        guess, _ = process.predict(waiting * stretch)
        more = Rows.values(waiting * stretch)
        process = process.condition(process.rows.join(more), np.r_[y, guess])
        mean = np.r_[mean, guess]
    return Objective(process, low, centre, spread), low + np.exp(centre + spread * mean)


class _Modelled(NamedTuple):
    """A process of the logarithm of `above`, and what it misses of each value from all others.

    - `missed`: the mean distance, in the objective's own units, which are those of volumes.
    """

    process: GaussianProcess
    centre: float
    spread: float
    y: Vector
    missed: float


def _modelled(
    x: Matrix,
    above: Vector,
    slopes: Sequence[Vector | None],
    errors: Sequence[float | None],
    groups: NDArray[np.intp],
    prior: Prior,
) -> _Modelled:
    logs = np.log(above)
    centre, spread = float(logs.mean()), max(float(logs.std()), 1e-12)
    y = (logs - centre) / spread
    rows, fit_rows = Rows.values(x), np.arange(min(len(x), _FIT_ROWS))
    if any(slope is not None for slope in slopes):
        room = ROWS - len(x)
        more, more_y = derivative_rows(slopes, errors, x, 1.0 / (spread * above), room)
        extra = min(len(more_y), max(_FIT_ROWS - len(x), 0))
        fit_rows = np.r_[fit_rows, len(x) + np.arange(extra)]
        rows, y = rows.join(more), np.r_[y, more_y]
    process = fit(rows, y, groups, prior=prior, fit_rows=fit_rows)
    guess = np.exp(centre + spread * (y - process.left_out())[: len(above)])
    return _Modelled(process, centre, spread, y, float(np.abs(guess - above).mean()))


def _straight(values: Vector) -> Vector:
    """The values above a bound so far below that the logarithm is a straight line.

    An objective that is small in corners for other reasons than its own (the sines and cosines of
    a spherical front) looks log-normal and is not: the bend then hides from the process what it is
    smooth in. Which of the two it is, the process that predicts the values better says.
    """
    above = shifted(values)
    return np.asarray(above - above.min() + _STRAIGHT * above.min())


def _bent(values: Vector) -> Vector:
    """The values above a bound below the best, whose logarithms are the most like normal ones.

    From half the median distance from the best, for errors and times that differ by factors, to so
    far below that the logarithm is a straight line (a Box-Cox transformation by the likelihood).
    """
    above = shifted(values)
    candidates = [above - above.min() + factor * above.min() for factor in _FACTORS]

    def likelihood(positive: Vector) -> float:
        logs = np.log(positive)
        return -len(logs) * float(np.log(max(logs.std(), 1e-12))) - float(logs.sum())

    return max(candidates, key=likelihood)


def climbed(
    belief: Belief, free: NDArray[np.intp], point: Vector, score: float
) -> tuple[Vector, float]:
    """Follow the slope of the acquisition in the continuous coordinates."""
    if not len(free):
        return point, score

    def negative(values: Vector) -> tuple[float, Vector]:
        moved = point.copy()
        moved[free] = values
        value, slope = belief.slope(moved, free)
        return -value, -slope

    result = minimize(
        negative,
        point[free],
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * len(free),
        options={"maxiter": 20},
    )
    if not -result.fun > score:
        return point, score
    moved = point.copy()
    moved[free] = result.x
    return moved, -float(result.fun)
