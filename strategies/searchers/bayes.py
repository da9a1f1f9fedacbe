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

What the space says of the optimum (`spread` around a default, `weights` of choices) enters the
acquisition as in piBO, see `strategies.surrogates.optimum_prior`.

Results at several resources enter together: where the same configuration was observed at two of
them by one more coordinate, else as `strategies.surrogates.fidelities.stacked` makes them.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from strategies.arguments import instance, integer, nonnegative, switch
from strategies.feasibility import feasible_first
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Item, Searcher
from strategies.searchers.contexts import Contexts, task_levels
from strategies.space import Point, SearchSpace
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
from strategies.surrogates.narrowed import narrowed
from strategies.surrogates.optimum_prior import OptimumPrior
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

# How often the levels of tasks and the process are fitted in turns.
_LEVELLINGS = 3

# Of the suggestions of a process that predicts nothing, the share that are draws from the prior.
_DOUBTED = 0.5

# Expected improvements whose logarithms differ by less are as good as each other: on a plateau, and
# elsewhere. Chosen on twelve scripts for Optuna (`experiments.switched`): with 0.1 a search gains
# less there. With 1 everywhere no more, and smooth functions are found less precisely early on.
_PLATEAU_SLACK = 1.0
_SLACK = 0.3


@dataclass(frozen=True)
class _Belief:
    """The fitted process and what the acquisition needs to know beside it.

    - `at`: what the process has after a point's own coordinates: the context and the resource asked
      about, or nothing.
    - `through`: the resource at which a suggestion is going to be observed.
    - `own`: standard deviation of what a configuration has beside the smooth process; none where
      several resources are modelled together.
    - `skill`: share of the squares of the values that is predicted when each is left out in turn;
      one where gradients are known or several resources are modelled together.
    - `limits`: what is believed of the constraints, if there are any.
    - `joint`: whether several resources are modelled together.
    - `fresh`: whether the context that is asked about is one of which nothing is known.
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
    joint: bool = False
    fresh: bool = False

    def score(self, points: Matrix) -> Vector:
        if self.joint:
            # Near what is known at the lower resource the higher one may still be uncertain, and
            # nothing would be learned of it: what counts is how far an observation moves the mean.
            mean, deviation = self.process.predict_change(points, self.at, self.through)
        else:
            mean, deviation = self.process.predict(_extended(points, self.at))
            deviation = np.hypot(deviation, self.own)
        # On a new task the first choice is the one that counts: what earlier tasks recommend.
        gain = -mean if self.fresh else log_expected_improvement(mean, deviation, self.best)
        if self.limits is None:
            return gain
        context = self.at[: len(self.at) - self.joint]
        return self.limits.weigh(gain, _extended(points, context))


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
    - `decay`: for how many results the space's own prior on the optimum counts in full: its density
      enters the acquisition to the power `decay / n` after `n` of them (piBO's β). Its authors take
      a tenth of the trials planned; the default, 10, is that of a hundred. With 0 the prior decides
      the draws only.
    - `context`: the space of what is known of a task before it is tuned (size of the data, width of
      the model). The process sees it beside the configuration, so that results of one task inform
      the next. `propose` and `Ledger.ask` then need a context; the first configuration for a new
      one is what the others recommend.

    **Raises:** `ValueError` naming the argument, what was expected and what was received.
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
        decay: float = 10.0,
        context: SearchSpace | Mapping[str, Any] | None = None,
    ):
        super().__init__(space, seed=seed, first=first)
        self.startup = integer("startup", startup, 1)
        self.gradients = switch("gradients", gradients)
        if prior is not None and not isinstance(prior, Prior):
            raise ValueError(f"'prior': expected a Prior, received {prior!r:.80}")
        self.prior = Prior() if prior is None else instance("prior", prior, Prior)
        self.decay = nonnegative("decay", decay)
        self._groups, self._stretch = geometry(self.space)
        self.context = None if context is None else Contexts.of(context)
        self._asked: Point | None = None
        self._optimum = OptimumPrior(self.space, self.decay) if self.space.informed else None

    def check(self, observation: Observation) -> None:
        """One objective; and a context, where there are some."""
        super().check(observation)
        if self.context is not None:
            self.context.known(observation)

    def propose(
        self,
        number: int,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        context: Mapping[str, Any] | None = None,
    ) -> Suggestion:
        """The configuration to try next: a pure function, whatever the order of its arguments.

        **Arguments:** as of every searcher, and

        - `context`: of the task that it is for, nested or flat. It is in the suggestion's note, as
          that of an observation is in the observation's.

        **Raises:** `ValueError` naming the key for a context of another space.
        """
        if self.context is None:
            self.expect_context(context)
            return super().propose(number, history, pending)
        asked = copy.copy(self)
        asked._asked = self.context.point(context)
        # A trial that failed without a context, or waits without one, tells nothing of any task.
        history = [o for o in history if o.status != "failed" or self.context.knows(o)]
        pending = [s for s in pending if self.context.knows(s)]
        suggestion = super(BayesSearcher, asked).propose(number, history, pending)
        note = {**suggestion.note, "context": self.context.space.to_json(asked._asked)}
        return replace(suggestion, note=note)

    def expect_context(self, context: Any) -> None:
        """One of the space of contexts; nothing without any."""
        if self.context is not None:
            self.context.point(context)
        elif context is not None:
            raise ValueError(
                f"'context': expected nothing, as this {type(self).__name__} has no space of "
                f"contexts (context=SearchSpace(...)), received {context!r:.80}"
            )

    def within(self, items: Iterable[Item], context: Mapping[str, Any] | None) -> list[Item]:
        """The observations or suggestions of one context; without a context, all of them."""
        return [*items] if self.context is None else self.context.same(items, context)

    def _here(self, items: Sequence[Item]) -> list[Item]:
        return [*items] if self._asked is None else self.within(items, self._asked.config)

    def _untried(
        self, suggestion: Suggestion, tried: Sequence[Observation | Suggestion]
    ) -> dict[str, Any] | None:
        return super()._untried(suggestion, self._here(tried))

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        usable = [item for item in history if item.status != "failed"]
        joint = paired(usable)
        known = len({item.number for item in usable}) if joint else len(usable)
        if known < (max(self.startup, self.space.dimension + 2) if joint else self.startup):
            return Suggestion(number, self._drawn(number), {"origin": "startup"})
        power = 0.0 if self._optimum is None else self._optimum.power(known)
        rng = self.rng(number)
        inner = self._narrowed([*history, *pending], rng)
        history = [inner._located(item) for item in history]
        pending = [inner._located(item) for item in pending]
        belief = inner._believe(history, pending, rng)
        if (
            not belief.fresh
            and belief.skill < 1.0
            and rng.random() < _DOUBTED * (1.0 - belief.skill)
        ):
            space = None if self._optimum is None else self._optimum.drawn_from(known, rng)
            return Suggestion(number, self._drawn(number, space), {"origin": "draw"})
        point = inner._best(belief, history, pending, rng, power)
        config = self.space.sample(rng) if point is None else inner.space.decode(point)
        return Suggestion(number, config, {"origin": "model"})

    def _narrowed(
        self, items: Sequence[Observation | Suggestion], rng: np.random.Generator
    ) -> "BayesSearcher":
        """This searcher in the space without the choices that the process cannot tell apart."""
        space = narrowed(self.space, items, rng)
        if space is self.space:
            return self
        inner = copy.copy(self)
        inner.space = space
        inner._groups, inner._stretch = geometry(space)
        inner._optimum = OptimumPrior(space, self.decay) if space.informed else None
        return inner

    def _best(
        self,
        belief: _Belief,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
        power: float,
    ) -> Vector | None:
        """Unit coordinates of the configuration of which most is expected."""
        usable = [item for item in history if item.status != "failed"]
        region = self._region(belief, self._here(usable))
        anchors = belief.anchors / self._stretch
        if self._optimum is not None:
            anchors = np.r_[anchors, self._optimum.likeliest]
        # A smallest value that repeats shows a plateau. Gradients tell which coordinates matter;
        # a new task is given what is best.
        values = [item.value for item in usable if item.value is not None]
        plateau = values.count(min(values, default=np.inf)) > 1
        exact = belief.joint or belief.fresh or belief.process.rows.direction.any()
        slack = _PLATEAU_SLACK if plateau else _SLACK
        return maximise(
            self.space,
            lambda units: self._score(belief, units, power),
            anchors,
            self._tried(history, pending),
            rng,
            None
            if belief.joint
            else lambda point, score: self._climb(belief, point, score, region, power),
            region,
            0.0 if exact else slack,
        )

    def _drawn(self, number: int, space: SearchSpace | None = None) -> dict[str, Any]:
        """A draw from the prior; those of a search are evenly spread."""
        point = sobol_point(self.space.uniforms, self.seed, number)
        return (space or self.space).from_uniform(point)

    def seen(self, history: Sequence[Observation]) -> Sequence[Observation]:
        """The history itself: constraints are modelled, unless several resources are."""
        usable = [item for item in history if item.status != "failed"]
        return feasible_first(history) if paired(usable) else history

    def _tried(self, history: Sequence[Observation], pending: Sequence[Suggestion]) -> Matrix:
        """Everything that need not be tried again, at whatever resource it was."""
        known = [item.unit for item in [*self._here(history), *self._here(pending)]]
        return np.stack(known) if known else np.empty((0, self.space.dimension))

    # The model

    def _believe(
        self,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
    ) -> _Belief:
        groups, beside = self._groups, self._beside(history)
        context = self._beside(())[0] if self._asked is not None else np.empty(0)
        if self.context is not None:
            groups = np.r_[groups, groups.max() + 1 + self.context.groups]
        limit_groups = groups
        here = (beside == context).all(axis=1)
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
        at = np.r_[context, np.ones(places.shape[1])]
        through = np.r_[context, np.zeros(places.shape[1])]
        units = np.stack([item.unit for item in history])
        gradients = [item.slope if self._usable(item) else None for item in history]
        if len(order) > room:
            near, rest = order[: room // 2], order[room // 2 :]
            order = np.r_[near, rng.choice(rest, room - len(near), replace=False)]
        x = np.c_[units[order] * self._stretch, beside[order], places[order]]
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
        if self.context is not None:
            task = np.unique(beside[order], axis=0, return_inverse=True)[1].reshape(-1)
            for _ in range(_LEVELLINGS if task.any() else 0):
                # A level moves the values of its task and no derivative.
                level = task_levels(y[: len(task)] - process.predict(x)[0], task)
                y = np.r_[y[: len(task)] - level, y[len(task) :]]
                spread = max(float(y[: len(task)].std()), 1e-12)
                y = y / spread
                process = fit(rows, y, groups, prior=self.prior, fit_rows=fit_rows)
        skill = 1.0 if joint or len(y) > len(order) else _skill(process, y)
        tried = x[:, : self.space.dimension]
        if joint:
            # Each configuration once, whatever it was observed at.
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
                limit_groups,
                self.prior,
                rng,
                derivative_rows if self.gradients else None,
                beside,
            )
        anchors = tried[np.lexsort((mean, behind))[:_ANCHORS]]
        if pending:
            waiting = np.stack([one.unit for one in pending]) * self._stretch
            lowest = np.zeros((len(waiting), places.shape[1]))
            await_at: Matrix = np.c_[waiting, self._beside(pending), lowest]
            guess, _ = process.predict(await_at)
            process = process.condition(rows.join(Rows.values(await_at)), np.r_[y, guess])
            tried = np.r_[tried, waiting]
            # What is expected of them is no improvement for anybody else.
            mean, _ = process.predict(_extended(tried, at))
        own = 0.0
        if not joint and len(order) >= _OWN_FROM:
            own = _OWN_SHARE * process.noise
            # The weights of the values are what is left over, in units of the noise variance.
            left_over = own * process.weights[process.rows.is_value > 0]
            left_over[: len(order)] *= here[order]
            mean = mean + left_over
        if limits is not None:
            mean = mean[: len(behind)][behind == behind.min()]
        best, deviation = float(mean.min()), float(np.sqrt(own))
        fresh = self._asked is not None and not here.any() and not self._here(pending)
        return _Belief(
            process,
            best,
            tried,
            anchors,
            at,
            through,
            deviation,
            skill,
            limits,
            joint,
            fresh,
        )

    def _beside(self, items: Sequence[Observation | Suggestion]) -> Matrix:
        """What the process sees of the context of each; of the one asked about without any."""
        if self.context is None or self._asked is None:
            return np.empty((len(items), 0))
        points = [self.context.known(item) for item in items] if items else [self._asked]
        return self.context.columns(points)

    def _usable(self, item: Observation) -> bool:
        """Whether the gradient of an observation may be conditioned on."""
        return self.gradients and item.status != "failed"

    # The acquisition

    def _score(self, belief: _Belief, units: Matrix, power: float) -> Vector:
        """Logarithm of the expected improvement, weighed by the prior on the optimum."""
        score = belief.score(units * self._stretch)
        return score if self._optimum is None else score + power * self._optimum.log(units)

    def _region(self, belief: _Belief, history: Sequence[Observation]) -> tuple[Vector, Vector]:
        """Where to look: around the best point if gradients make the model a local one."""
        low, high = np.zeros(self.space.dimension), np.ones(self.space.dimension)
        free = self.space.differentiable
        if free.any() and belief.process.rows.direction.any():
            center, scales = belief.anchors[0, free], belief.process.scales[: len(free)][free]
            low[free], high[free] = box(center, scales, side(feasible_first(history)))
        return low, high

    def _climb(
        self,
        belief: _Belief,
        point: Vector,
        score: float,
        region: tuple[Vector, Vector],
        power: float = 0.0,
    ) -> tuple[Vector, float]:
        """Follow the slope of the acquisition in the continuous coordinates."""
        free = np.flatnonzero(self.space.differentiable)

        def negative(values: Vector) -> tuple[float, Vector]:
            moved = point.copy()
            moved[free] = values
            place = np.r_[moved * self._stretch, belief.at]
            mean, deviation, by_mean, by_deviation = belief.process.predict_slopes(place, free)
            total = np.hypot(deviation, belief.own)
            if belief.fresh:
                value, slope = -float(mean), -by_mean
            else:
                value = float(log_expected_improvement(mean, total, belief.best))
                to_mean, to_total = log_expected_improvement_slopes(mean, total, belief.best)
                slope = to_mean * by_mean + to_total * deviation / total * by_deviation
            if belief.limits is not None:
                value, slope = belief.limits.weigh_slopes(value, slope, place, free)
            slope = slope * self._stretch[free]
            if self._optimum is not None:
                value += power * float(self._optimum.log(moved[None])[0])
                slope = slope + power * self._optimum.log_slope(moved)[free]
            return -value, -slope

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
