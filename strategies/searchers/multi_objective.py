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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.arguments import finite, instance, integer, several, switch
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.candidates import maximise
from strategies.surrogates.common_descent import common_descent
from strategies.surrogates.derivative_rows import derivative_rows
from strategies.surrogates.feasibility import feasibility
from strategies.surrogates.gaussian_process import Prior
from strategies.surrogates.geometry import geometry
from strategies.surrogates.hypervolume import dominated, improvement
from strategies.surrogates.objectives import ROWS, Belief, believed, climbed
from strategies.surrogates.startup import sobol_point

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Volumes of more objectives say little: nearly nothing dominates anything.
_MOST = 4
#: Several objectives are rarely as rugged as one, and a front of noise is
#: full of false members.
_PRIOR = Prior(lengthscale=0.6, noise=1e-4)
#: Members of the front whose neighbourhoods are looked at.
_ANCHORS = 8
#: Bounds of the points before the first model.
_FEWEST, _MOST_DRAWN = 6, 20
#: Lengths of the steps along a common descent direction, in box sides.
_STEPS = (0.003, 0.01, 0.03, 0.1, 0.3)
#: The reference lies beyond the front's worst values by so much of the extent of what was seen, of
#: which the largest values, from diverged trainings, are left out.
_BEYOND, _MOST_OF_ALL = 0.1, 0.9
#: Points are the same if no coordinate differs by so much.
_SAME = 1e-9
_LEAST = 1e-300


class MultiObjectiveSearcher(Searcher):
    """Searches for all trade-offs between two to four objectives, constraints included.

    Trials report `values`, all minimised (an engine turns those around that are maximised), always
    as many, and if they have them `gradients` and `constraints`. Pending suggestions are
    conditioned on at their posterior means, failed trials are the worst in every objective.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `startup`: points of a scrambled Sobol sequence before the first model. Default: two for each
      hyperparameter and two more, at least 6 and at most 20. With fewer, what the processes do not
      know are the corners of the space, and the search goes from corner to corner.
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
        startup: int | None = None,
        reference: Sequence[float] | None = None,
        gradients: bool = True,
        prior: Prior | None = None,
    ):
        super().__init__(space, seed=seed, first=first)
        if startup is None:
            startup = int(np.clip(2 * self.space.uniforms + 2, _FEWEST, _MOST_DRAWN))
        self.startup = integer("startup", startup, 2)
        self.gradients = switch("gradients", gradients)
        self.reference = None
        if reference is not None:
            each = several("reference", reference, "a number each")
            self.reference = np.array([finite("reference", one, "a number each") for one in each])
        if prior is not None and not isinstance(prior, Prior):
            raise ValueError(f"'prior': expected a Prior, received {prior!r:.80}")
        self.prior = _PRIOR if prior is None else instance("prior", prior, Prior)
        self._groups, self._stretch = geometry(self.space)

    def check(self, observation: Observation) -> None:
        """There must be two to four objectives, as many as the reference has.

        **Raises:** `ValueError` saying how many there are.
        """
        super().check(observation)
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

        anchors = np.stack([item.unit for item in members])
        anchors = anchors[rng.permutation(len(anchors))[:_ANCHORS]]
        tried = np.stack([item.unit for item in [*history, *pending]])

        def climb(point: Vector, score: float) -> tuple[Vector, float]:
            moved, better = climbed(belief, free, point, score)
            # The end of a climb may be a corner that was tried.
            known = np.abs(tried - moved).max(axis=1).min() < _SAME
            return (point, score) if known else (moved, better)

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
    ) -> tuple[Belief, list[Observation | Suggestion]]:
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
        if len(ordered) > ROWS:
            near, rest = ordered[: ROWS // 2], ordered[ROWS // 2 :]
            ordered = np.r_[near, rng.choice(rest, ROWS - len(near), replace=False)]
        items = [history[i] for i in ordered]
        waiting = np.array([item.unit for item in pending]).reshape(-1, self.space.dimension)
        objectives, means = [], []
        for i in range(count):
            slopes = [item.slopes[i] if self.gradients and item.slopes else None for item in items]
            objective, mean = believed(
                items,
                values[ordered, i],
                slopes,
                waiting,
                self._stretch,
                self._groups,
                self.prior,
            )
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
        return Belief(tuple(objectives), gain, limits, self._stretch), members

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
    """A little beyond the worst of the front, by a part of the extent of all that was seen.

    A front that has no extent yet is to get one.
    """
    worst = points[best].max(axis=0)
    extent = np.quantile(points, _MOST_OF_ALL, axis=0) - points.min(axis=0)
    return worst + _BEYOND * np.maximum(extent, 1e-12 + 1e-9 * np.abs(worst))
