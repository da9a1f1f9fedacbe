"""Bayesian optimisation with a Gaussian process on values and gradients.

The posterior is that of `strategies.surrogates.gaussian_process`; the next configuration maximises
the logarithm of expected improvement (Ament et al. 2023) below the smallest posterior mean at an
observed point, so that one lucky noisy value does not end the search. Where trials report
hypergradients the process conditions on them too (Wu, Poloczek, Wilson & Frazier 2017), each with
the noise that its reported error implies: as derivatives along all coordinates if the row budget
allows, else along the gradient itself, which carries most of what it tells. Pending suggestions
are conditioned on at their posterior mean.

What the smooth process leaves over, its noise, is partly chance and partly the configuration's own
(a nugget has a microscale part beside the error of measurement: Cressie 1993, section 2.3). A
configuration may for good be better than all its neighbours, so that it is worth while to try many
where the mean is low; and one that was lucky may be so for good, which leaves less to be gained
there. Improvement is therefore expected of, and measured by, the smooth process plus the own part.

A process of few values in many dimensions, or of values that are hardly smooth, predicts little,
and a search that follows it stays where it happened to begin. How much it predicts is known: each
value from all others. As far as it does not, suggestions are draws from the prior, which keep the
search from being much worse than a random one, and look again at choices that were given up.

Results at several resources enter together: where the same configuration was observed at two of
them by one more coordinate, else as `strategies.surrogates.fidelities.stacked` makes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from strategies.arguments import integer, switch
from strategies.feasibility import feasible_first
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.acquisition import (
    log_expected_improvement,
    log_expected_improvement_slopes,
)
from strategies.surrogates.candidates import maximise
from strategies.surrogates.derivative_rows import derivative_rows
from strategies.surrogates.feasibility import Feasibility, feasibility
from strategies.surrogates.fidelities import aligned, paired, stacked
from strategies.surrogates.gaussian_process import GaussianProcess, Prior, Rows, fit
from strategies.surrogates.geometry import geometry
from strategies.surrogates.startup import sobol_point
from strategies.surrogates.trust_region import box, side

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Rows that the hyperparameters are fitted to and rows of the posterior: what keeps a suggestion
# below 0.3 s at 100 gradients in 20 dimensions on two cores.
_FIT_ROWS = 160
_POSTERIOR_ROWS = 600
# The same where the results of several resources are modelled together: a configuration has a row
# for each, and schedulers ask for many configurations.
_JOINT_FIT_ROWS = 100
_JOINT_POSTERIOR_ROWS = 250

_ANCHORS = 5

# The share of the noise variance that is the configuration's own. It cannot be fitted, since no
# configuration is trained twice. With none, a noisy search goes on exploring when it has found
# where the mean is low; with all, it takes the first such place for the best.
_OWN_SHARE = 0.3
# From so many values on: noise that was fitted to fewer may be structure not yet seen, and a search
# of a function without noise would stay where it is.
_OWN_FROM = 20

# Of the suggestions of a process that predicts nothing, the share that are draws from the prior.
_DOUBTED = 0.5


@dataclass(frozen=True)
class _Belief:
    """The fitted process and what the acquisition needs to know beside it.

    - `at`: what the process has after a point's own coordinates: the resource asked about, or
      nothing.
    - `through`: the resource at which a suggestion is going to be observed.
    - `own`: standard deviation of what a configuration has beside the smooth process; none where
      several resources are modelled together.
    - `skill`: share of the squares of the values that is predicted when each is left out in turn;
      one where gradients are known or several resources are modelled together.
    - `limits`: what is believed of the constraints, if there are any.
    """

    process: GaussianProcess
    best: float
    tried: Matrix
    anchors: Matrix
    at: Vector
    through: Vector
    own: float
    skill: float
    limits: Feasibility | None = None

    def score(self, points: Matrix) -> Vector:
        if len(self.at):
            # Near what is known at the lower resource the higher one may still be uncertain, and
            # nothing would be learned of it: what counts is how far an observation moves the mean.
            mean, deviation = self.process.predict_change(points, self.at, self.through)
        else:
            mean, deviation = self.process.predict(points)
            deviation = np.hypot(deviation, self.own)
        gain = log_expected_improvement(mean, deviation, self.best)
        return gain if self.limits is None else self.limits.weigh(gain, points)


class BayesSearcher(Searcher):
    """A Gaussian process and expected improvement over the whole, mixed space.

    Constraints have a process each: improvement below the best feasible point is weighed by the
    probability of being feasible (`strategies.surrogates.feasibility`). Where the results of
    several resources are modelled together, they are ranked.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `startup`: points of a scrambled Sobol sequence before the first model. Inside a scheduler it
      is at least the space's encoded dimensions, plus two.
    - `gradients`: condition on the gradients that trials report, if they do.
    - `prior`: on the hyperparameters of the process.
    """

    all_resources = True

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
        self.startup = integer("startup", startup, 1)
        self.gradients = switch("gradients", gradients)
        if prior is not None and not isinstance(prior, Prior):
            raise ValueError(f"'prior': expected a Prior, received {prior!r:.80}")
        self.prior = prior or Prior()
        self._groups, self._stretch = geometry(self.space)

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        usable = [item for item in history if item.status != "failed"]
        joint = paired(usable)
        known = len({item.number for item in usable}) if joint else len(usable)
        if known < (max(self.startup, self.space.dimension + 2) if joint else self.startup):
            return Suggestion(number, self._drawn(number), {"origin": "startup"})
        rng = self.rng(number)
        belief = self._believe(history, pending, rng)
        if belief.skill < 1.0 and rng.random() < _DOUBTED * (1.0 - belief.skill):
            return Suggestion(number, self._drawn(number), {"origin": "draw"})
        region = self._region(belief, usable)
        point = maximise(
            self.space,
            lambda units: belief.score(units * self._stretch),
            belief.anchors / self._stretch,
            self._tried(history, pending),
            rng,
            None
            if len(belief.at)
            else lambda point, score: self._climb(belief, point, score, region),
            region,
        )
        config = self.space.sample(rng) if point is None else self.space.decode(point)
        return Suggestion(number, config, {"origin": "model"})

    def _drawn(self, number: int) -> dict[str, Any]:
        """A draw from the prior; those of a search are evenly spread."""
        return self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))

    def seen(self, history: Sequence[Observation]) -> Sequence[Observation]:
        """The history itself: constraints are modelled, unless several resources are."""
        usable = [item for item in history if item.status != "failed"]
        return feasible_first(history) if paired(usable) else history

    def _tried(self, history: Sequence[Observation], pending: Sequence[Suggestion]) -> Matrix:
        """Everything that need not be tried again, at whatever resource it was."""
        return np.stack([item.unit for item in [*history, *pending]])

    # The model

    def _believe(
        self,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
    ) -> _Belief:
        groups = self._groups
        joint = paired(history)
        if joint:
            data = aligned(history)
            places, target, slope = data.place[:, None], data.target, data.slope
            groups = np.r_[groups, groups.max() + 1]
            # The higher resources first: they are what is asked about. The rest as it comes, so
            # that what decides the hyperparameters is not only the best.
            order = np.lexsort((target, -data.place))
            fit_room, room = _JOINT_FIT_ROWS, _JOINT_POSTERIOR_ROWS
            near, rest = order[: fit_room // 2], order[fit_room // 2 :]
            order = np.r_[near, rng.permutation(rest)]
        else:
            fit_room, room = _FIT_ROWS, _POSTERIOR_ROWS
            values = np.array([np.nan if o.value is None else o.value for o in history], float)
            values[[item.status == "failed" for item in history]] = np.nan
            resources = [np.nan if o.resource is None else o.resource for o in history]
            target, slope = stacked(np.array(resources, float), values)
            places = np.empty((len(history), 0))
            order = np.argsort(target, kind="stable")
        at, through = np.ones(places.shape[1]), np.zeros(places.shape[1])
        units = np.stack([item.unit for item in history])
        gradients = [item.slope if self._usable(item) else None for item in history]
        if len(order) > room:
            near, rest = order[: room // 2], order[room // 2 :]
            order = np.r_[near, rng.choice(rest, room - len(near), replace=False)]
        x = np.c_[units[order] * self._stretch, places[order]]
        rows, y = Rows.values(x), target[order]
        fit_rows = np.arange(min(len(order), fit_room))
        if any(gradient is not None for gradient in gradients):
            extra, extra_y = derivative_rows(
                [gradients[i] for i in order],
                [history[i].gradient_error for i in order],
                x,
                slope[order],
                room - len(order),
            )
            fit_extra = min(len(extra_y), max(fit_room - len(order), 0))
            fit_rows = np.r_[fit_rows, len(order) + np.arange(fit_extra)]
            rows, y = rows.join(extra), np.r_[y, extra_y]
        process = fit(rows, y, groups, prior=self.prior, fit_rows=fit_rows)
        skill = 1.0 if joint or len(y) > len(order) else _skill(process, y)
        tried = x[:, : self.space.dimension]
        if joint:
            tried = np.unique(tried, axis=0)
        mean, _ = process.predict(_extended(tried, at))
        # Nothing is expected of an infeasible point, however small its value.
        behind = np.zeros(len(mean))
        limits = None
        if not joint:
            behind = np.array([history[i].rank[0] for i in order])
            limits = feasibility(
                history,
                self._stretch,
                self._groups,
                self.prior,
                rng,
                derivative_rows if self.gradients else None,
            )
        anchors = tried[np.lexsort((mean, behind))[:_ANCHORS]]
        if pending:
            waiting = np.stack([one.unit for one in pending]) * self._stretch
            guess, _ = process.predict(_extended(waiting, through))
            more = Rows.values(_extended(waiting, through))
            process = process.condition(rows.join(more), np.r_[y, guess])
            tried = np.r_[tried, waiting]
            # What is expected of them is no improvement for anybody else.
            mean, _ = process.predict(_extended(tried, at))
        own = 0.0
        if not joint and len(order) >= _OWN_FROM:
            own = _OWN_SHARE * process.noise
            # The weights of the values are what is left over, in units of the noise variance.
            mean = mean + own * process.weights[process.rows.is_value > 0]
        if limits is not None:
            mean = mean[: len(behind)][behind == behind.min()]
        best, deviation = float(mean.min()), float(np.sqrt(own))
        return _Belief(process, best, tried, anchors, at, through, deviation, skill, limits)

    def _usable(self, item: Observation) -> bool:
        """Whether the gradient of an observation may be conditioned on."""
        return self.gradients and item.status != "failed"

    # The acquisition

    def _region(self, belief: _Belief, history: Sequence[Observation]) -> tuple[Vector, Vector]:
        """Where to look: around the best point if gradients make the model a local one."""
        low, high = np.zeros(self.space.dimension), np.ones(self.space.dimension)
        free = self.space.differentiable
        if free.any() and belief.process.rows.direction.any():
            center, scales = belief.anchors[0, free], belief.process.scales[: len(free)][free]
            low[free], high[free] = box(center, scales, side(feasible_first(history)))
        return low, high

    def _climb(
        self, belief: _Belief, point: Vector, score: float, region: tuple[Vector, Vector]
    ) -> tuple[Vector, float]:
        """Follow the slope of the acquisition in the continuous coordinates."""
        free = np.flatnonzero(self.space.differentiable)

        def negative(values: Vector) -> tuple[float, Vector]:
            moved = point.copy()
            moved[free] = values
            mean, deviation, by_mean, by_deviation = belief.process.predict_slopes(
                moved * self._stretch, free
            )
            total = np.hypot(deviation, belief.own)
            value = log_expected_improvement(mean, total, belief.best)
            to_mean, to_total = log_expected_improvement_slopes(mean, total, belief.best)
            slope = to_mean * by_mean + to_total * deviation / total * by_deviation
            if belief.limits is not None:
                weighed, slope = belief.limits.weigh_slopes(
                    float(value), slope, moved * self._stretch, free
                )
                return -weighed, -slope * self._stretch[free]
            return -float(value), -slope * self._stretch[free]

        if not len(free):
            return point, score
        result = minimize(
            negative,
            point[free],
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(region[0][free], region[1][free], strict=True)),
            options={"maxiter": 20},
        )
        if not -result.fun > score:
            return point, score
        moved = point.copy()
        moved[free] = result.x
        return moved, -float(result.fun)


def _skill(process: GaussianProcess, y: Vector) -> float:
    """Share of the squares of `y` that is predicted when each is left out in turn."""
    return max(0.0, 1.0 - float(np.sum(process.left_out() ** 2) / max(float(y @ y), 1e-300)))


def _extended(points: Matrix, at: Vector) -> Matrix:
    """Points with the coordinates that they have in common."""
    return np.c_[points, np.broadcast_to(at, (len(points), len(at)))]
