"""The probability that a configuration is feasible, from constraints that were observed.

A Gaussian process for each constraint, on `sign(c) log(1 + |c| / scale)`, which keeps the sign and
looks closest where it changes (Eriksson & Poloczek, "Scalable constrained Bayesian optimization",
AISTATS 2021); the constraints are taken as independent, so that the probability is a product
(Gardner et al., "Bayesian optimization with inequality constraints", ICML 2014). Where nothing
feasible is known yet the probability alone is maximised (Gelbart, Snoek & Adams, UAI 2014).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from strategies.observation import Observation
from strategies.surrogates.gaussian_process import GaussianProcess, Prior, Rows, fit
from strategies.surrogates.outputs import standardised

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Rows that each process is fitted to, and rows of its posterior: less than those of the objective,
#: as there may be several constraints.
_FIT_ROWS = 100
_ROWS = 300

#: Derivative rows of gradients, reported errors, places, and slopes of the transformation; see
#: `derivative_rows`.
Derivatives = Callable[
    [Sequence[Vector | None], Sequence[float | None], Matrix, Vector, int], tuple[Rows, Vector]
]


@dataclass(frozen=True)
class Feasibility:
    """What is believed of all constraints.

    - `processes`: one for each, on transformed values.
    - `bounds`: what these must not exceed.
    - `found`: whether something feasible is known.
    """

    processes: tuple[GaussianProcess, ...]
    bounds: tuple[float, ...]
    found: bool

    def log_probability(self, x: Matrix) -> Vector:
        """Logarithm of the probability that the rows of `x`, as the processes see them, are."""
        total = np.zeros(len(x))
        for process, bound in zip(self.processes, self.bounds, strict=True):
            mean, deviation = process.predict(x)
            total += log_ndtr((bound - mean) / deviation)
        return total

    def log_probability_slopes(
        self, x: Vector, coordinates: NDArray[np.intp]
    ) -> tuple[float, Vector]:
        """The same at one point, and its derivatives along `coordinates`."""
        total, slope = 0.0, np.zeros(len(coordinates))
        for process, bound in zip(self.processes, self.bounds, strict=True):
            mean, deviation, by_mean, by_deviation = process.predict_slopes(x, coordinates)
            z = float((bound - mean) / deviation)
            log_probability = float(log_ndtr(z))
            # The density over the probability, neither of which must underflow.
            ratio = np.exp(-0.5 * z * z - 0.5 * np.log(2 * np.pi) - log_probability)
            total += log_probability
            slope -= ratio * (by_mean + z * by_deviation) / deviation
        return total, slope

    def weigh(self, log_gain: Vector, x: Matrix) -> Vector:
        """Logarithm of what is gained if feasible, times the probability of that."""
        probability = self.log_probability(x)
        return log_gain + probability if self.found else probability

    def weigh_slopes(
        self, log_gain: float, slope: Vector, x: Vector, coordinates: NDArray[np.intp]
    ) -> tuple[float, Vector]:
        """The same at one point, with derivatives along `coordinates`."""
        probability, by_place = self.log_probability_slopes(x, coordinates)
        return (log_gain + probability, slope + by_place) if self.found else (probability, by_place)


def feasibility(
    history: Sequence[Observation],
    stretch: Vector,
    groups: NDArray[np.intp],
    prior: Prior,
    rng: np.random.Generator,
    derivatives: Derivatives | None = None,
    beside: Matrix | None = None,
) -> Feasibility | None:
    """What a history tells about its constraints; `None` if it has none.

    **Arguments:**

    - `history`: checked observations; those that do not have a constraint say nothing about it.
    - `stretch`, `groups`: of the unit coordinates, see `geometry`.
    - `prior`: on the hyperparameters of each process.
    - `rng`: chooses from what is too much.
    - `derivatives`: makes rows of gradients. Default: gradients are not looked at.
    - `beside`: `(n, c)`, what the processes see of each observation after its configuration, such
      as its context; `groups` has its columns, too. Default: nothing.
    """
    names = sorted({name for item in history for name in item.constraints})
    if not names:
        return None
    found = any(item.status == "complete" and item.feasible for item in history)
    processes, bounds = [], []
    for name in names:
        where = [i for i, item in enumerate(history) if name in item.constraints]
        known = [history[i] for i in where]
        raw = np.array([item.constraints[name] for item in known])
        finite = raw[np.isfinite(raw)]
        # Violated by nobody knows how much: as much as the worst that is known.
        raw = np.where(np.isnan(raw), np.inf, raw)
        raw = np.clip(raw, min(finite, default=-1.0), max([*finite, 0.0]) or 1.0)
        size = np.abs(raw)
        scale = float(np.median(size[size > 0])) if (size > 0).any() else 1.0
        bent = np.sign(raw) * np.log1p(size / scale)
        # Where trials that do not have this constraint are feasible and nothing is known to be
        # within it, the bound counts as a value: the first violations would be believed everywhere.
        judged = np.r_[bent, 0.0] if found and (bent > 0).all() else bent
        centre = float(judged.mean())
        scaled, slopes = standardised(judged)
        y, slope = scaled[: len(bent)], slopes[: len(bent)]
        spread = 1.0 / float(slopes[0])
        order = np.argsort(np.abs(bent), kind="stable")
        if len(order) > _ROWS:
            near, rest = order[: _ROWS // 2], order[_ROWS // 2 :]
            order = np.r_[near, rng.choice(rest, _ROWS - len(near), replace=False)]
        x = np.stack([known[i].unit for i in order]) * stretch
        if beside is not None:
            x = np.c_[x, beside[[where[i] for i in order]]]
        rows, y = Rows.values(x), y[order]
        fit_rows = np.arange(min(len(order), _FIT_ROWS))
        gradients = [known[i].constraint_slopes.get(name) for i in order]
        if derivatives is not None and any(each is not None for each in gradients):
            more, more_y = derivatives(
                gradients,
                [None] * len(order),
                x,
                (slope / (scale + size))[order],
                _ROWS - len(order),
            )
            extra = min(len(more_y), max(_FIT_ROWS - len(order), 0))
            fit_rows = np.r_[fit_rows, len(order) + np.arange(extra)]
            rows, y = rows.join(more), np.r_[y, more_y]
        process = fit(rows, y, groups, prior=prior, fit_rows=fit_rows)
        processes.append(process)
        # The objective pulls to the bound; within its noise a point there is as often outside.
        bounds.append(-centre / spread - float(np.sqrt(process.noise)))
    return Feasibility(tuple(processes), tuple(bounds), found)
