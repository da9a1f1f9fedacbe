"""Several objectives: search for the whole front between them.

A Gaussian process for each objective, on the logarithm of its distance from a little less than the
best value, and the expected improvement of the hypervolume that is dominated in the objectives' own
units (`strategies.surrogates.hypervolume`), maximised around the members of the Pareto front and
over the whole space. The front is that of the posterior means at what was observed, so that one
lucky noisy value hides no trade-off (Daulton, Balandat & Bakshy, "Parallel Bayesian optimization of
multiple noisy objectives with expected hypervolume improvement", NeurIPS 2021, average over its
posterior instead). Gradients of the objectives are conditioned on, and steps along the direction in
which all of them fall compete with everything else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from strategies.arguments import integer, switch
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.candidates import maximise
from strategies.surrogates.common_descent import common_descent
from strategies.surrogates.derivative_rows import derivative_rows
from strategies.surrogates.feasibility import Feasibility, feasibility
from strategies.surrogates.gaussian_process import GaussianProcess, Prior, Rows, fit
from strategies.surrogates.geometry import geometry
from strategies.surrogates.hypervolume import Improvement, dominated, improvement
from strategies.surrogates.outputs import shifted
from strategies.surrogates.startup import sobol_point

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Volumes of more objectives say little: nearly nothing dominates anything.
_MOST = 4
#: Values are of interest up to so many times the distance of the median from the best.
_TAIL = 5.0
#: Rows that the hyperparameters of a process are fitted to, and rows of its posterior.
_FIT_ROWS = 160
_ROWS = 500
#: Members of the front whose neighbourhoods are looked at.
_ANCHORS = 8
#: Lengths of the steps along a common descent direction, in box sides.
_STEPS = (0.003, 0.01, 0.03, 0.1, 0.3)
#: The reference lies beyond the front's worst values by so much of its extent.
_BEYOND = 0.1
_LEAST = 1e-300


@dataclass(frozen=True)
class _Objective:
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
        mean, *rest = self.process.predict_slopes(x, free)
        return (self.centre + self.spread * mean, *(self.spread * each for each in rest))


@dataclass(frozen=True)
class _Belief:
    objectives: tuple[_Objective, ...]
    gain: Improvement
    limits: Feasibility | None
    stretch: Vector

    def score(self, units: Matrix) -> Vector:
        x = units * self.stretch
        beliefs = [objective.belief(x) for objective in self.objectives]
        mean = np.stack([mean for mean, _ in beliefs], axis=1)
        deviation = np.stack([deviation for _, deviation in beliefs], axis=1)
        gain = np.log(np.maximum(self.gain(mean, deviation), _LEAST))
        return gain if self.limits is None else self.limits.weigh(gain, x)

    def slope(self, unit: Vector, free: NDArray[np.intp]) -> tuple[float, Vector]:
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


class MultiObjectiveSearcher(Searcher):
    """Searches for all trade-offs between two to four objectives, constraints included.

    Trials report `values`, all minimised (an engine turns those around that are maximised), always
    as many, and if they have them `gradients` and `constraints`. Pending suggestions are
    conditioned on at their posterior means, failed trials are the worst in every objective.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `startup`: points of a scrambled Sobol sequence before the first model.
    - `reference`: up to where volumes count, one number for each objective, minimised. Default: a
      tenth of the front's extent beyond its worst values.
    - `gradients`: use the gradients that trials report, if they do.
    - `prior`: on the hyperparameters of all processes.
    """

    several_objectives = True

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        startup: int = 6,
        reference: Sequence[float] | None = None,
        gradients: bool = True,
        prior: Prior | None = None,
    ):
        super().__init__(space, seed=seed, first=first)
        self.startup = integer("startup", startup, 2)
        self.gradients = switch("gradients", gradients)
        self.reference = None if reference is None else np.array(reference, float)
        if self.reference is not None and (
            self.reference.ndim != 1 or not np.isfinite(self.reference).all()
        ):
            raise ValueError(f"'reference': expected a number each, received {reference!r:.80}")
        if prior is not None and not isinstance(prior, Prior):
            raise ValueError(f"'prior': expected a Prior, received {prior!r:.80}")
        self.prior = prior or Prior()
        self._groups, self._stretch = geometry(self.space)

    def check(self, observation: Observation) -> None:
        """There must be two to four objectives, as many as the reference has.

        **Raises:** `ValueError` saying how many there are.
        """
        count = len(observation.values)
        if not 2 <= count <= _MOST:
            raise ValueError(
                f"'values': expected 2 to {_MOST} objectives, received {max(count, 1)}"
            )
        if self.reference is not None and len(self.reference) != count:
            raise ValueError(
                f"'values': expected {len(self.reference)} as in 'reference', received {count}"
            )

    def seen(self, history: Sequence[Observation]) -> Sequence[Observation]:
        """The history itself: constraints are modelled."""
        return history

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        known = [item for item in history if item.status != "failed"]
        if len(known) < self.startup:
            config = self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))
            return Suggestion(number, config, {"origin": "startup"})
        rng = self.rng(number)
        belief, members = self._believe(history, pending, rng)
        free = np.flatnonzero(self.space.differentiable)

        def climb(point: Vector, score: float) -> tuple[Vector, float]:
            return _climbed(belief, free, point, score)

        anchors = np.stack([item.unit for item in members])
        anchors = anchors[rng.permutation(len(anchors))[:_ANCHORS]]
        tried = np.stack([item.unit for item in [*history, *pending]])
        point = maximise(self.space, belief.score, anchors, tried, rng, climb)
        origin = "model"
        steps = self._steps(known)
        if len(steps):
            scores = belief.score(steps)
            step, score = climb(steps[np.argmax(scores)], float(scores.max()))
            if point is None or score > belief.score(point[None])[0]:
                point, origin = step, "descent"
        config = self.space.sample(rng) if point is None else self.space.decode(point)
        return Suggestion(number, config, {"origin": origin})

    def _believe(
        self,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
    ) -> tuple[_Belief, list[Observation | Suggestion]]:
        """What is believed, and the configurations whose posterior means are the front."""
        limits = feasibility(
            history,
            self._stretch,
            self._groups,
            self.prior,
            rng,
            derivative_rows if self.gradients else None,
        )
        count = len(next(item for item in history if item.values).values)
        values = np.array([item.values or (np.inf,) * count for item in history], float)
        ordered = np.argsort(_layers(values), kind="stable")
        if len(ordered) > _ROWS:
            near, rest = ordered[: _ROWS // 2], ordered[_ROWS // 2 :]
            ordered = np.r_[near, rng.choice(rest, _ROWS - len(near), replace=False)]
        items = [history[i] for i in ordered]
        waiting = np.array([item.unit for item in pending]).reshape(-1, self.space.dimension)
        objectives, means = [], []
        for i in range(count):
            objective, mean = self._objective(items, values[ordered, i], i, waiting)
            objectives.append(objective)
            means.append(mean)
        points = np.stack(means, axis=1)
        allowed = np.r_[[item.feasible for item in items], np.ones(len(pending), bool)]
        if not allowed.any():
            allowed[:] = True
        places = [one for one, good in zip([*items, *pending], allowed, strict=True) if good]
        points = points[allowed]
        best = ~dominated(points)
        lows = np.array([objective.low for objective in objectives])
        reference = self.reference if self.reference is not None else _reference(points, best)
        gain = improvement(points - lows, reference - lows, [True] * count)
        members = [one for one, good in zip(places, best, strict=True) if good]
        return _Belief(tuple(objectives), gain, limits, self._stretch), members

    def _objective(
        self, items: Sequence[Observation], values: Vector, index: int, waiting: Matrix
    ) -> tuple[_Objective, Vector]:
        """One objective, and its posterior means at all items and at what is waited for."""
        worst = float(values[np.isfinite(values)].max())
        values = np.where(np.isfinite(values), values, worst)
        # Diverged trainings would take all of the range, and are bad enough at the cap.
        middle = float(np.median(values))
        cap = middle + _TAIL * (middle - values.min())
        capped = np.minimum(values, cap) if cap > middle else values
        above = shifted(capped)
        low = float(capped.min() - above.min())
        logs = np.log(above)
        centre, spread = float(logs.mean()), max(float(logs.std()), 1e-12)
        y = (logs - centre) / spread
        x = np.stack([item.unit for item in items]) * self._stretch
        rows, fit_rows = Rows.values(x), np.arange(min(len(x), _FIT_ROWS))
        slopes = [
            item.slopes[index] if self.gradients and item.slopes and value == kept else None
            for item, value, kept in zip(items, values, capped, strict=True)
        ]
        if any(slope is not None for slope in slopes):
            errors = [item.gradient_error for item in items]
            room = _ROWS - len(x)
            more, more_y = derivative_rows(slopes, errors, x, 1.0 / (spread * above), room)
            extra = min(len(more_y), max(_FIT_ROWS - len(x), 0))
            fit_rows = np.r_[fit_rows, len(x) + np.arange(extra)]
            rows, y = rows.join(more), np.r_[y, more_y]
        process = fit(rows, y, self._groups, prior=self.prior, fit_rows=fit_rows)
        mean, _ = process.predict(x)
        if len(waiting):
            guess, _ = process.predict(waiting * self._stretch)
            process = process.condition(
                rows.join(Rows.values(waiting * self._stretch)), np.r_[y, guess]
            )
            mean = np.r_[mean, guess]
        return _Objective(process, low, centre, spread), low + np.exp(centre + spread * mean)

    def _steps(self, known: Sequence[Observation]) -> Matrix:
        """Steps along the common descent directions of the front's members that have gradients."""
        if not self.gradients:
            return np.empty((0, self.space.dimension))
        feasible = [item for item in known if item.feasible]
        values = np.array([item.values for item in feasible], float)
        if not len(values):
            return np.empty((0, self.space.dimension))
        sides = np.maximum(np.ptp(values, axis=0), _LEAST)
        found = []
        for item, beaten in zip(feasible, dominated(values), strict=True):
            if beaten or not item.slopes or any(slope is None for slope in item.slopes):
                continue
            slopes = np.nan_to_num(np.array(item.slopes)) / sides[:, None]
            # What points out of the box leads nowhere.
            blocked = ((item.unit <= 0) & (slopes > 0).all(0)) | (
                (item.unit >= 1) & (slopes < 0).all(0)
            )
            way = common_descent(np.where(blocked, 0.0, slopes))
            size = float(np.abs(way).max(initial=0.0))
            if size > 0:
                found += [np.clip(item.unit + length * way / size, 0, 1) for length in _STEPS]
        return self.space.snap(np.array(found)) if found else np.empty((0, self.space.dimension))


def _layers(values: Matrix) -> Vector:
    """The number of the front that each row belongs to, when the better ones are taken away."""
    layer = np.full(len(values), np.inf)
    left = np.arange(len(values))
    number = 0
    while len(left):
        best = ~dominated(values[left])
        layer[left[best]] = number
        left, number = left[~best], number + 1
    return layer


def _reference(points: Matrix, best: NDArray[np.bool_]) -> Vector:
    """A little beyond the worst of the front; beyond the worst of all where that has no extent."""
    front = points[best]
    worst, least = front.max(axis=0), front.min(axis=0)
    flat = worst - least <= 0
    worst = np.where(flat, points.max(axis=0), worst)
    return worst + _BEYOND * np.maximum(worst - least, 1e-12 + 1e-9 * np.abs(worst))


def _climbed(
    belief: _Belief, free: NDArray[np.intp], point: Vector, score: float
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


__all__ = ["MultiObjectiveSearcher"]
