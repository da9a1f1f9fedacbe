"""Bayesian optimisation with a Gaussian process on values and gradients.

The posterior is that of `strategies.surrogates.gaussian_process`; the next configuration maximises
the logarithm of expected improvement (Ament et al. 2023) below the smallest posterior mean at an
observed point, so that one lucky noisy value does not end the search. Where trials report
hypergradients the process conditions on them too (Wu, Poloczek, Wilson & Frazier 2017), each with
the noise that its reported error implies: as derivatives along all coordinates if the row budget
allows, else along the gradient itself, which carries most of what it tells. Pending suggestions
are conditioned on at their posterior mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.acquisition import (
    log_expected_improvement,
    log_expected_improvement_slopes,
)
from strategies.surrogates.candidates import maximise
from strategies.surrogates.gaussian_process import GaussianProcess, Prior, Rows, fit
from strategies.surrogates.geometry import geometry
from strategies.surrogates.outputs import imputed, logarithmic
from strategies.surrogates.startup import sobol_point

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Rows that the hyperparameters are fitted to and rows of the posterior: what keeps a suggestion
# below 0.3 s at 100 gradients in 20 dimensions on two cores.
_FIT_ROWS = 160
_POSTERIOR_ROWS = 600

_ANCHORS = 5


@dataclass(frozen=True)
class _Belief:
    """The fitted process and what the acquisition needs to know beside it."""

    process: GaussianProcess
    best: float
    tried: Matrix
    anchors: Matrix

    def score(self, points: Matrix) -> Vector:
        mean, deviation = self.process.predict(points)
        return log_expected_improvement(mean, deviation, self.best)


class BayesSearcher(Searcher):
    """A Gaussian process and expected improvement over the whole, mixed space.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `startup`: points of a scrambled Sobol sequence before the first model.
    - `gradients`: condition on the gradients that trials report, if they do.
    - `prior`: on the hyperparameters of the process.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        startup: int = 4,
        gradients: bool = True,
        prior: Prior | None = None,
    ):
        super().__init__(space, seed=seed, first=first)
        if startup < 1:
            raise ValueError(f"'startup': expected an integer >= 1, received {startup!r}")
        self.startup = startup
        self.gradients = gradients
        self.prior = prior or Prior()
        self._groups, self._stretch = geometry(self.space)

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        if sum(item.status != "failed" for item in history) < self.startup:
            config = self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))
            return Suggestion(number, config, {"origin": "startup"})
        rng = self.rng(number)
        belief = self._believe(_highest_resource(history), pending, rng)
        point = maximise(
            self.space,
            lambda units: belief.score(units * self._stretch),
            belief.anchors / self._stretch,
            belief.tried / self._stretch,
            rng,
            lambda point, score: self._climb(belief, point, score),
        )
        config = self.space.sample(rng) if point is None else self.space.decode(point)
        return Suggestion(number, config, {"origin": "model"})

    # The model

    def _believe(
        self,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
    ) -> _Belief:
        units = np.stack([self.space.encode(item.config) for item in history])
        values = np.array([np.nan if item.value is None else item.value for item in history])
        values[[item.status == "failed" for item in history]] = np.nan
        with_gradient = self.gradients and any(item.gradient for item in history)
        target, slope = logarithmic(imputed(values))
        order = np.argsort(target, kind="stable")
        if len(order) > _POSTERIOR_ROWS:
            near, rest = order[: _POSTERIOR_ROWS // 2], order[_POSTERIOR_ROWS // 2 :]
            order = np.r_[near, rng.choice(rest, _POSTERIOR_ROWS - len(near), replace=False)]
        x = units[order] * self._stretch
        rows, y = Rows.values(x), target[order]
        fit_rows = np.arange(min(len(order), _FIT_ROWS))
        if with_gradient:
            extra, extra_y = self._derivatives(
                [history[i] for i in order], x, slope[order], _POSTERIOR_ROWS - len(order)
            )
            room = max(_FIT_ROWS - len(order), 0)
            fit_rows = np.r_[fit_rows, len(order) + np.arange(min(len(extra_y), room))]
            rows, y = rows.join(extra), np.r_[y, extra_y]
        process = fit(rows, y, self._groups, prior=self.prior, fit_rows=fit_rows)
        mean, _ = process.predict(x)
        tried = x
        if pending:
            waiting = np.stack([self.space.encode(item.config) for item in pending]) * self._stretch
            guess, _ = process.predict(waiting)
            process = process.condition(rows.join(Rows.values(waiting)), np.r_[y, guess])
            tried = np.r_[x, waiting]
        anchors = x[np.argsort(mean, kind="stable")[:_ANCHORS]]
        return _Belief(process, float(mean.min()), tried, anchors)

    def _derivatives(
        self, history: Sequence[Observation], x: Matrix, slope: Vector, room: int
    ) -> tuple[Rows, Vector]:
        """Derivative rows, best observations first, until the room is used up."""
        dimension = self.space.dimension
        known = [
            (i, self.space.pull_back(item.config, item.gradient), item.gradient_error)
            for i, item in enumerate(history)
            if item.gradient and item.status != "failed"
        ]
        entries = sum(int(np.isfinite(gradient).sum()) for _, gradient, _ in known)
        at: list[int] = []
        directions: list[Vector] = []
        y: list[float] = []
        noise: list[float] = []
        for i, raw, error in known:
            gradient = slope[i] * np.nan_to_num(raw)
            size = float(np.linalg.norm(gradient))
            if error is not None and not error < 1:
                continue
            if entries <= room:
                along = np.eye(dimension)[np.isfinite(raw)]
            elif len(y) < room and size > 0:
                along = (gradient / size)[None]
            else:
                continue
            spread = 0.0 if error is None else error * size / np.sqrt(np.isfinite(raw).sum())
            at += [i] * len(along)
            directions += list(along)
            y += list(along @ gradient)
            noise += [spread] * len(along)
        if not y:
            return Rows.values(np.empty((0, dimension))), np.empty(0)
        return Rows(x[at], np.array(directions), np.array(noise)), np.array(y)

    # The acquisition

    def _climb(self, belief: _Belief, point: Vector, score: float) -> tuple[Vector, float]:
        """Follow the slope of the acquisition in the continuous coordinates."""
        free = np.flatnonzero(self.space.differentiable)

        def negative(values: Vector) -> tuple[float, Vector]:
            moved = point.copy()
            moved[free] = values
            mean, deviation, by_mean, by_deviation = belief.process.predict_slopes(
                moved * self._stretch, free
            )
            value = log_expected_improvement(mean, deviation, belief.best)
            to_mean, to_deviation = log_expected_improvement_slopes(mean, deviation, belief.best)
            slope = to_mean * by_mean + to_deviation * by_deviation
            return -float(value), -slope * self._stretch[free]

        if not len(free):
            return point, score
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


def _highest_resource(history: Sequence[Observation]) -> Sequence[Observation]:
    """Observations at the largest resource at which there are enough to model (as BOHB does).

    Values at different resources are never mixed in one ranking.
    """
    levels = sorted({item.resource for item in history if item.resource is not None}, reverse=True)
    for level in levels:
        chosen = [item for item in history if item.resource == level]
        if sum(item.status != "failed" for item in chosen) >= 4:
            return chosen
    return history
