"""Cost-aware local search along the Pareto front, unbounded: CARBS (Fetterman et al. 2023)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from strategies.arguments import integer, positive
from strategies.observation import Observation, Suggestion
from strategies.searchers.pareto import ParetoSearcher
from strategies.space import Categorical, Float, Int, Logit, Ordinal, SearchSpace
from strategies.surrogates.acquisition import log_expected_improvement
from strategies.surrogates.gaussian_process import GaussianProcess, Prior, Rows, fit
from strategies.surrogates.outputs import logarithmic

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Members of the front to search around, and candidates drawn around each.
_MEMBERS, _DRAWN = 8, 200
# Probability that a draw takes another choice of a categorical.
_OTHER = 0.3
# Share of the range that is a step where the space names none.
_STEP = 0.25
# Median length scale, in steps: a step is what makes a difference to the user.
_LENGTH = 1.0
# What a plane leaves over is rounding below this: nothing to be modelled in units of.
_NOTHING = 1e-9
# The share of the cheapest that cannot be on the front: they would be searched around for ever.
_CHEAPEST = 0.2


@dataclass(frozen=True)
class _Trend:
    """A process around a plane: beyond what was seen it goes on, where a process alone turns back.

    - `x`, `y`: what it was fitted to, in steps.
    - `plane`: at `middle`, and the slopes.
    - `scale`: what the process's values, what the plane leaves over, are in units of.
    """

    x: Matrix
    y: Vector
    middle: Vector
    plane: Vector
    scale: float
    process: GaussianProcess

    @classmethod
    def fit(cls, x: Matrix, y: Vector, groups: NDArray[np.intp], prior: Prior) -> "_Trend":
        middle = x.mean(axis=0)
        away = x - middle
        # One observation of no slope along each coordinate, a step long.
        slopes = np.linalg.solve(away.T @ away + np.eye(x.shape[1]), away.T @ (y - y.mean()))
        plane = np.r_[y.mean(), slopes]
        left = y - plane[0] - away @ slopes
        # The prior of a process is on values of unit spread; what the plane leaves over is less.
        spread = float(left.std())
        scale = spread if spread > _NOTHING else 1.0
        process = fit(Rows.values(x), left / scale, groups, prior=prior)
        return cls(x, y, middle, plane, scale, process)

    def _at(self, x: Matrix) -> Vector:
        return self.plane[0] + (x - self.middle) @ self.plane[1:]

    def predict(self, x: Matrix) -> tuple[Vector, Vector]:
        mean, deviation = self.process.predict(x)
        return self._at(x) + self.scale * mean, self.scale * deviation

    def expecting(self, x: Matrix) -> "_Trend":
        """As if the values at `x` had come out as they are expected to."""
        rows = np.r_[self.x, x]
        values = np.r_[self.y, self.predict(x)[0]]
        left = (values - self._at(rows)) / self.scale
        process = self.process.condition(Rows.values(rows), left)
        return _Trend(rows, values, self.middle, self.plane, self.scale, process)


@dataclass(frozen=True)
class _Group:
    """The trials of one configuration: where, the means of value and log cost, how many."""

    config: dict[str, Any]
    unit: Vector
    value: float
    cost: float
    count: int


class CARBSSearcher(ParetoSearcher):
    """Walks along the Pareto front of value and cost, from a centre, without bounds to stay in.

    Candidates are drawn around the members of the front and weighed by their expected improvement
    on what the front has at their cost, and on what it has at a cost that is drawn for each
    suggestion (so that the search moves up in cost as well), by the density of the draw, and by the
    probability that they do not fail. Every few suggestions the member of the front that was tried
    least is tried again: one lucky value does not lead the search astray.

    Distances are in steps: the `spread` of a hyperparameter that has one (`strategies.space.around`
    makes such a domain of a centre and a scale), a decade of a logarithmic one, else a quarter of
    the range.

    **Arguments:**

    - `space`, `seed`, `first`, `prior`: as for `ParetoSearcher`.
    - `startup`: trials before the first model: the defaults of the space, the centre, and draws
      around it, from closer and closer as long as all have failed.
    - `radius`: standard deviation of the draws, in steps.
    - `resample`: every how many suggestions a member of the front is tried again; 0 is never.
    - `max_cost`: what is predicted to cost more is suggested only if all candidates are, and then
      the cheapest; the defaults and the draws before the first model know of no cost. Without it
      the search goes on to ever larger trials, if these are better.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        startup: int = 5,
        radius: float = 0.3,
        resample: int = 5,
        max_cost: float | None = None,
        prior: Prior | None = None,
    ):
        prior = Prior(lengthscale=_LENGTH) if prior is None else prior
        super().__init__(space, seed=seed, first=first, startup=startup, prior=prior)
        self.radius = positive("radius", radius)
        self.resample = integer("resample", resample, 0)
        self.max_cost = None if max_cost is None else positive("max_cost", max_cost)
        self._steps = np.ones(self.space.dimension)
        for path, where in self.space.slices.items():
            self._steps[where] = _step(self.space.domains[path])
        #: Coordinates in which a draw is normal: all but those of choices, which are drawn anew.
        self._normal = np.ones(self.space.dimension, bool)
        for path, where in self.space.slices.items():
            self._normal[where] = not isinstance(self.space.domains[path], Categorical)

    def _untried(
        self, suggestion: Suggestion, tried: Sequence[Observation | Suggestion]
    ) -> dict[str, Any] | None:
        # A member of the front is tried again on purpose.
        again = suggestion.note.get("origin") == "resample"
        return None if again else super()._untried(suggestion, tried)

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        rng = self.rng(number)
        known = [o for o in history if o.status == "complete" and o.value is not None and o.cost]
        failed = [o for o in history if o.status == "failed"]
        if len(known) < self.startup:
            centre = self.space.encode(self.space.default())
            if number == 0:
                return Suggestion(number, self.space.default(), {"origin": "startup"})
            closer = 1.0 if known else 0.5 ** len(failed)
            unit = self._around(centre, closer, 1, rng)[0]
            return Suggestion(number, self.space.decode(unit), {"origin": "startup"})
        groups = _grouped(known)
        x = np.stack([group.unit for group in groups])
        value, cost = self._models(groups, x)
        means, logs = value.predict(self._seen(x))[0], np.array([g.cost for g in groups])
        members = _front(means, logs)
        if self.resample and number % self.resample == 0:
            again = min(members, key=lambda i: (groups[i].count, groups[i].cost))
            return Suggestion(number, groups[again].config, {"origin": "resample"})
        if pending:
            value = value.expecting(self._seen(np.stack([item.unit for item in pending])))
        chosen = rng.permutation(members)[:_MEMBERS]
        candidates = np.concatenate([self._around(x[i], 1.0, _DRAWN, rng) for i in chosen])
        score = self._score(candidates, value, cost, (means, logs, members), x, rng)
        score += self._success(candidates, x, failed)
        best = self.space.decode(candidates[int(np.argmax(score))])
        return Suggestion(number, best, {"origin": "model"})

    def _seen(self, units: Matrix) -> Matrix:
        """Unit coordinates as the models see them: in steps."""
        return units * self._stretch / self._steps

    def _models(self, groups: Sequence[_Group], x: Matrix) -> tuple[_Trend, _Trend]:
        values, _ = logarithmic(np.array([group.value for group in groups]))
        costs = np.array([group.cost for group in groups])
        seen = self._seen(x)
        return (
            _Trend.fit(seen, values, self._groups, self.prior),
            _Trend.fit(seen, costs, self._groups, self.prior),
        )

    def _around(self, unit: Vector, closer: float, count: int, rng: np.random.Generator) -> Matrix:
        """Draws around a point, `(count, dimension)`."""
        size = closer * self.radius * self._steps
        drawn = unit + size * rng.standard_normal((count, len(unit)))
        for path, where in self.space.slices.items():
            domain = self.space.domains[path]
            if isinstance(domain, Categorical) and domain.size:
                other = np.eye(domain.size)[rng.integers(domain.size, size=count)]
                stay = rng.random(count) > closer * _OTHER
                drawn[:, where] = np.where(stay[:, None], unit[where], other)
        return self.space.snap(np.clip(drawn, 0.0, 1.0))

    def _score(
        self,
        candidates: Matrix,
        value: _Trend,
        cost: _Trend,
        front: tuple[Vector, Vector, list[int]],
        x: Matrix,
        rng: np.random.Generator,
    ) -> Vector:
        """Log expected improvement on the front, times the density around its nearest member."""
        means, logs, members = front
        order = sorted(members, key=lambda i: logs[i])
        steps, levels = logs[order], np.minimum.accumulate(means[order])
        mean, deviation = value.predict(self._seen(candidates))
        expected = cost.predict(self._seen(candidates))[0]
        ceiling = math.inf if self.max_cost is None else math.log(self.max_cost)
        drawn = rng.uniform(steps[0], min(steps[-1], max(ceiling, steps[0])))
        # Between its members the front is a line. As stairs it would promise a whole step to what
        # is just cheaper than a member, and the search would stay there.
        best = np.minimum(np.interp(expected, steps, levels), np.interp(drawn, steps, levels))
        gain = log_expected_improvement(mean - best, deviation, 0.0)
        away = (candidates[:, None] - x[members][None]) / self._steps / self.radius
        distance = np.min(np.sum(away[..., self._normal] ** 2, axis=-1), axis=1)
        score = gain - 0.5 * distance
        # Beyond the ceiling nothing is suggested while anything is below it.
        return score - 1e6 * np.maximum(expected - ceiling, 0.0)

    def _success(
        self, candidates: Matrix, x: Matrix, failed: Sequence[Observation]
    ) -> Vector | float:
        """Log probability that a candidate does not fail."""
        if not failed:
            return 0.0
        places = np.r_[x, np.stack([item.unit for item in failed])]
        labels = np.r_[np.ones(len(x)), -np.ones(len(failed))]
        process = fit(Rows.values(self._seen(places)), labels, self._groups, prior=self.prior)
        mean, deviation = process.predict(self._seen(candidates))
        return log_ndtr(mean / deviation)


def _step(domain: Any) -> float:
    if isinstance(domain, Categorical):
        return 1.0
    if isinstance(domain, Float | Int | Logit | Ordinal) and domain.spread is not None:
        return float(domain.spread)
    if isinstance(domain, Float | Int) and domain.log:
        return min(1.0 / math.log10(domain.high / domain.low), 1.0)
    return _STEP


def _grouped(known: Sequence[Observation]) -> list[_Group]:
    same: dict[str, list[Observation]] = {}
    for item in known:
        same.setdefault(repr(item.config), []).append(item)
    return [
        _Group(
            dict(items[0].config),
            items[0].unit,
            float(np.mean([item.value for item in items])),  # type: ignore[arg-type]
            float(np.mean(np.log([item.cost or 1.0 for item in items]))),
            len(items),
        )
        for items in same.values()
    ]


def _front(means: Vector, logs: Vector) -> list[int]:
    """What nothing cheaper is expected to beat, the cheapest of all left out."""
    least = np.quantile(logs, _CHEAPEST) if len(logs) > 1 / _CHEAPEST else -np.inf
    best, found = np.inf, []
    for i in np.lexsort((means, logs)):
        if logs[i] >= least and means[i] < best:
            best = means[i]
            found.append(int(i))
    return found
