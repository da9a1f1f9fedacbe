"""One run of a search, from `BaseSearchCV`'s checks to the rows of `cv_results_`."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import joblib
import numpy as np
from sklearn.base import is_classifier
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_method_params

from strategies.ledger import Ledger
from strategies.searchers import BayesSearcher, HypergradientSearcher
from strategies.sklearn.candidates import Candidates, Evaluation, columns_of
from strategies.sklearn.folds import Table
from strategies.sklearn.objective import CrossValidation, NotDifferentiableError, feature_names
from strategies.sklearn.penalties import STEP, groups_of, step_name
from strategies.sklearn.prior import RatioPrior
from strategies.sklearn.spaces import (
    is_single,
    names_of,
    params_of,
    space_of,
    tuned,
    without_objects,
)
from strategies.sklearn.stages import Budget, follow_gradients, follow_scores, part_of
from strategies.sklearn.trials import Journal, Stage, Trial, journal
from strategies.space import SearchSpace

# Stages; without gradients the trials are scikit-learn's own fits.
_SCORES, _SHARED, _TUNED = "scores", "shared", "tuned"
_SEVERAL_LABELS = ("multilabel-indicator", "multiclass-multioutput")
# Longest first step of a search of many penalties, in units of their range: most have no gradient.
_FIRST_STEP = 0.5


class Run:
    """What a search does between the checks of `BaseSearchCV.fit` and the choice of the best."""

    def __init__(self, search: Any, X: Any, y: Any, params: Mapping[str, Any]):
        self.search, self.X, self.y, self.params = search, X, y, params
        plain, self.objects = without_objects(search.param_space)
        # One candidate is a grid as well, yet nothing to search.
        single = search.penalty == "single" and is_single(plain)
        self.only = {name: values[0] for name, values in plain.items()} if single else None
        space: Any = None if single else space_of(plain)
        self.space = space
        self.searched = frozenset(plain) if single else names_of(space)
        known = search.estimator.get_params()
        for name in sorted(self.searched):
            parts = name.split("__")
            owners = {"__".join(parts[:end]) for end in range(1, len(parts))}
            # What an estimator that is searched for has, scikit-learn knows when it is there.
            if name not in known and not owners & self.searched:
                raise ValueError(
                    f"{name!r}: expected a parameter of {type(search.estimator).__name__}, one of "
                    f"{sorted(known)}"
                )
        self.objective: CrossValidation | None = None
        self.groups: dict[str, np.ndarray] = {}
        self.names: list[str] = []
        self.explanation = ""
        self.ledger: Ledger | None = None

    def __call__(self, worker: Any, evaluate: Any, context: Any) -> None:
        """Search; `evaluate` and `context` are those of `BaseSearchCV._run_search`."""
        search = self.search
        checked = _check_method_params(self.X, params=dict(self.params))
        routed = worker._get_routed_params_for_fit(checked)
        splits = list(worker.cv.split(self.X, self.y, **routed.splitter.split))
        self.scorers, self.metric = worker._get_scorers()
        try:
            if self.only is not None:
                raise NotDifferentiableError("there is a single candidate")
            self.objective = self._objective(routed, splits)
        except NotDifferentiableError as reason:
            if search.penalty != "single":
                raise ValueError(
                    f"'penalty': expected 'single' for {search.estimator!r}, received "
                    f"{search.penalty!r}; there is no hypergradient: {reason}"
                ) from None
            self.explanation = f"BayesSearcher on scores, without gradients: {reason}"
            if search.criterion is not None and self.only is None:
                warnings.warn(self.explanation, UserWarning, stacklevel=4)
        deadline = None if search.timeout is None else time.monotonic() + search.timeout
        budget = Budget(search.n_trials, search.patience, deadline, search.stop)
        context = context.subcontext(task_name="search", max_subtasks=None).call_on_fit_task_begin(
            estimator=worker
        )
        with journal(search.resume, self._identity(splits)) as kept:
            self.candidates = Candidates(kept, self._candidate)
            self.candidates.restore()
            self.evaluate = Evaluation(worker, self, evaluate, context)
            if self.objective is None:
                self._by_scores(kept, budget)
            else:
                self._by_gradients(kept, budget)
            if not self.evaluate.count:
                # `BaseSearchCV` must see a fit of its own; `results` does without it.
                self.evaluate.fit(self.candidates.last_restored)
            self.trials, self.stopped = kept.trials, budget.stopped
        context.call_on_fit_task_end(estimator=worker)

    # What is searched

    def _objective(self, routed: Any, splits: list) -> CrossValidation:
        search = self.search
        if search.criterion is None:
            raise NotDifferentiableError("criterion=None")
        if self.y is None:
            raise NotDifferentiableError("there are no targets")
        estimator = search.estimator
        weight = _fit_weight(estimator, routed.estimator.fit)
        scorer = self.scorers
        if isinstance(scorer, _MultimetricScorer):
            chosen = search.refit if isinstance(search.refit, str) else None
            scorer = scorer._scorers.get(chosen, next(iter(scorer._scorers.values())))
        if isinstance(estimator, Pipeline) and estimator.steps[-1][0] in self.searched:
            raise NotDifferentiableError("the last step itself is searched")
        # What has no model should not be read as a table either.
        CrossValidation.require_model(estimator)
        classifier = is_classifier(estimator)
        if classifier and type_of_target(self.y) in _SEVERAL_LABELS:
            raise NotDifferentiableError("a sample has several labels")
        test_weight = routed.scorer.score.get("sample_weight")
        table = Table(self.X, self.y, splits, weight, test_weight, classifier)
        width, groups = 0, None
        if search.penalty != "single":
            self.names = feature_names(estimator, self.X, self.y)
            width = len(self.names)
            self.groups = groups_of(search.penalty, self.names)
            groups = list(self.groups.values())
        objective = CrossValidation(
            estimator,
            table,
            criterion=search.criterion,
            scorer=scorer,
            searched=self.searched,
            groups=groups,
            width=width,
            rows=search._rows,
        )
        found = sorted(self.searched & set(objective.differentiable))
        if not found:
            raise NotDifferentiableError(
                f"none of {sorted(self.searched)} is among {objective.differentiable}"
            )
        if groups is not None and objective.penalised not in found:
            raise ValueError(
                f"'param_space': expected {objective.penalised!r}, to have one per feature or "
                f"group, received {sorted(self.searched)}"
            )
        self.explanation = (
            f"HypergradientSearcher on the criterion {_shown(objective.criterion)}, with gradients "
            f"in {', '.join(found)}"
        )
        return objective

    def _identity(self, splits: list) -> str:
        search = self.search
        described = [
            repr(search.estimator),
            self.space.describe() if self.only is None else self.only,
            search.penalty if isinstance(search.penalty, str) else dict(search.penalty),
            _shown(search.criterion),
            _shown(search.scoring),
            search.random_state or 0,
            search.ratio_spread,
            joblib.hash((self.X, self.y, splits)),
            {k: joblib.hash(v) for k, v in sorted(self.params.items())},
        ]
        return joblib.hash(repr(described))

    def _candidate(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the worker's estimator's `set_params` takes."""
        params = params_of(config, self.objects)
        if not self.groups:
            return params
        assert self.objective is not None
        assert self.objective.penalised is not None
        name = self.objective.penalised
        bare = not isinstance(self.search.estimator, Pipeline)
        prefix = f"{step_name(self.search.estimator)}__" if bare else ""
        values = np.broadcast_to(np.asarray(params[name], float), (len(self.groups),))
        params[name], factors = self.objective.split(values)
        return {**{prefix + n: v for n, v in params.items()}, f"{STEP}__factors": factors}

    # Searching

    def _by_gradients(self, kept: Journal, budget: Budget) -> None:
        assert self.objective is not None
        search, objective = self.search, self.objective
        seed, strict = search.random_state or 0, search.error_score == "raise"

        def follow(stage: Stage, limit: int, prior: RatioPrior | None = None) -> None:
            follow_gradients(objective, stage, budget, limit, self.objects, strict, prior)

        narrow = tuned(self.space, objective.differentiable)
        if not self.groups:
            stages = [Stage(_TUNED, HypergradientSearcher(narrow, seed=seed), kept)]
            follow(stages[0], budget.trials)
        else:
            wide = tuned(
                self.space, objective.differentiable, objective.penalised, (len(self.groups),)
            )
            prior = None
            if search.ratio_spread is not None:
                density = objective.criterion in objective.model.densities
                prior = RatioPrior(search.ratio_spread, len(objective.table.y), density)
            shared = Stage(_SHARED, HypergradientSearcher(narrow, seed=seed), kept)
            searcher = HypergradientSearcher(wide, seed=seed, radius=_FIRST_STEP)
            free = Stage(_TUNED, searcher, kept)
            stages = [free, shared]
            # From the middle, then from the best penalty that all share: minima are several.
            if not shared.trials:
                follow(free, part_of(budget.trials), prior)
            follow(shared, part_of(budget.trials))
            if shared.best is not None:
                opening = [trial.stage for trial in kept.trials].index(_SHARED)
                free.start_at(shared.best, _widened(shared.best.config, wide), opening)
            follow(free, budget.trials, prior)
        self.ledger = stages[0].ledger
        trials = [trial for stage in stages for trial in stage.trials if trial.value is not None]
        if not trials:
            raise ValueError(
                "expected a finite criterion in some trial, received none: "
                f"{[trial.error for stage in stages for trial in stage.trials]}"
            )
        for trial in sorted(trials, key=lambda t: t.value or 0.0)[: search.finalists]:
            self.evaluate(trial)

    def _by_scores(self, kept: Journal, budget: Budget) -> None:
        if self.only is not None:
            trial = Trial(_SCORES, 0, self.only, None)
            if not kept.trials:
                scores = self.evaluate(trial)
                kept.add_trial(replace(trial, value=-float(scores.mean())))
            return
        searcher = BayesSearcher(self.space, seed=self.search.random_state or 0)
        stage = Stage(_SCORES, searcher, kept)
        self.ledger = stage.ledger
        follow_scores(self.evaluate, stage, budget)

    # Results

    def results(
        self, form: Any, candidates: list, n_splits: int, out: Any, more: Any
    ) -> dict[str, Any]:
        """`cv_results_`: restored rows first."""
        trial = self.evaluate.trial
        assert trial is not None
        if trial.of in self.candidates.known:
            # Fitted once more for `BaseSearchCV`; what was found before stands.
            candidates, out, more = [], [], {}
        else:
            self.evaluate.fitted(out[len(out) - n_splits :])
        restored = self.candidates.restored
        columns: dict[str, list] = {}
        for row in restored:
            for name, value in columns_of(row.trial).items():
                columns.setdefault(name, []).append(value)
        for name, values in (more or {}).items():
            columns[name] = [*columns.get(name, []), *values]
        return form(
            [*(self.candidates.params(row.trial.config) for row in restored), *candidates],
            n_splits,
            [*(item for row in restored for item in row.out), *out],
            columns,
        )


def _widened(config: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """A configuration of the narrow space in the wide one."""
    wide: dict[str, Any] = {}
    for path, value in space.paths(config):
        shape = getattr(space.domains[path], "shape", ())
        wide[path] = np.full(shape, value).tolist() if shape and np.ndim(value) == 0 else value
    return wide


def _fit_weight(estimator: Any, params: Mapping[str, Any]) -> Any:
    """Weights of samples in training; other parameters of `fit` have no differentiable model."""
    if isinstance(estimator, Pipeline):
        last = estimator.steps[-1][0]
        rest = [name for name in params if name != f"{last}__sample_weight"]
        if len(rest) < len(params):
            weight = params[f"{last}__sample_weight"]
        elif params:
            routed = process_routing(estimator, "fit", **params)
            # Of a transformer it is `fit` or `fit_transform` that is given something.
            steps = [name for name, _ in estimator.steps[:-1]]
            rest = [name for name in steps if any(routed.get(name, {}).values())]
            weight = routed[last].fit.get("sample_weight")
        else:
            return None
    else:
        rest = [name for name in params if name != "sample_weight"]
        weight = params.get("sample_weight")
    if rest:
        raise NotDifferentiableError(f"fit is given {sorted(rest)}")
    return weight


def _shown(value: Any) -> str:
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)
