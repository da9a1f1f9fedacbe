"""Trials of a stage, and when to stop."""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from strategies.sklearn.candidates import Evaluation
from strategies.sklearn.objective import CrossValidation
from strategies.sklearn.prior import RatioPrior
from strategies.sklearn.spaces import Objects, name_of, params_of
from strategies.sklearn.trials import Journal, Stage, Trial
from strategies.space import SearchSpace
from strategies.stopping import INTERRUPTED, Stop, Watch
from strategies.tangents import tangent_gap

# An improvement below this part of the criterion's standard error counts for nothing.
_WORTH = 0.01
# The same of what two tangents leave, which is several times what is there.
_BOUND = 0.05
# Share of the trials for each of the first two of three parts of a search.
_PART = 1.0 / 3.0


@dataclass
class Budget:
    """When to stop.

    - `trials`: in all.
    - `patience`: trials of a stage without an improvement; `None` for no such end.
    - `deadline`: on the monotonic clock; `None` for none.
    - `stop`: what else ends the search; patience and expected gain are those of each stage, from
      its last start on.
    - `stopped`: why what was followed last ended before its trials were used up, in words.
    """

    trials: int
    patience: int | None
    deadline: float | None
    stop: Stop | None = None
    stopped: str | None = None
    _began: float = field(default_factory=time.monotonic)
    _watches: dict[tuple[str, int], Watch] = field(default_factory=dict)

    def spent(self, journal: Journal) -> bool:
        """Whether no further trial may start."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.interrupted or len(journal.trials) >= self.trials

    def over(self, stage: Stage) -> bool:
        """Whether a stage begins no further trial, by `stop` or as the search has no time left.

        A search has one trial at least.
        """
        if not stage.journal.trials:
            return False
        if self.stop is not None and not self.interrupted:
            key = stage.name, stage.since
            if key not in self._watches:
                self._watches[key] = Watch(self.stop, stage.ledger.space, self._began)
            cost = sum(trial.seconds for trial in stage.journal.trials)
            if self._watches[key].over(stage.recent, cost):
                self.stopped = self._watches[key].reason
                return True
        return self.spent(stage.journal)

    def begin(self) -> None:
        """Something further is followed: what has ended before does not say why the search ends."""
        if not self.interrupted:
            self.stopped = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C has ended the search."""
        return self.stopped == INTERRUPTED

    def interrupt(self) -> None:
        """Ctrl-C: no further trial begins, and the best so far is fitted and scored."""
        self.stopped = INTERRUPTED

    def settled(self, stage: Stage) -> bool:
        """Whether the last trials improved nothing worth another one, or no trial can."""
        if self.patience is None:
            return False
        trials, best, idle = stage.trials[stage.since :], math.inf, 0
        for trial in trials:
            if trial.value is None:
                idle += 1
                continue
            if trial.value < best - _WORTH * _standard_error(trial):
                best, idle = trial.value, 0
            else:
                best, idle = min(best, trial.value), idle + 1
        if idle >= self.patience:
            return True
        found = stage.best
        return found is not None and tangent_gap(stage.ledger) < _BOUND * _standard_error(found)


def _standard_error(trial: Trial) -> float:
    return float(np.std(trial.folds)) / math.sqrt(max(len(trial.folds), 1))


def follow_gradients(
    objective: CrossValidation,
    stage: Stage,
    budget: Budget,
    limit: int,
    objects: Objects,
    strict: bool,
    prior: RatioPrior | None = None,
) -> None:
    """Trials of a stage until its limit, the budget's end, or nothing improves any more.

    **Arguments:**

    - `objects`: what labels in configurations stand for.
    - `strict`: a trial that fails is an error. Otherwise only a first one is.
    - `prior`: on the penalties of features or groups, a part of the trials' criterion.
    """
    budget.begin()
    while len(stage.trials) < limit and not budget.over(stage) and not budget.settled(stage):
        suggestion = stage.ask()
        began = time.perf_counter()
        outcome: dict[str, Any] = {"value": None}
        try:
            found = objective(params_of(suggestion.config, objects))
        except KeyboardInterrupt:
            if not stage.journal.trials:
                raise
            budget.interrupt()
            return
        except Exception as error:
            if strict or not stage.trials:
                raise
            outcome["error"] = repr(error)
            warnings.warn(f"trial {suggestion.number} failed: {error!r}", stacklevel=2)
        else:
            value, gradient = found.value, dict(found.gradient)
            if prior is not None:
                name = objective.penalised or ""
                penalties = params_of(suggestion.config, objects)[name]
                value, gradient[name] = prior(value, gradient[name], np.asarray(penalties, float))
            outcome = {
                "value": value if math.isfinite(value) else None,
                "gradient": _by_path(stage.ledger.space, suggestion.config, gradient),
                "folds": found.folds.tolist(),
                "residual": found.residual,
                "error": None if math.isfinite(value) else f"the criterion is {value}",
            }
        stage.finish(
            Trial(
                stage=stage.name,
                number=suggestion.number,
                config=suggestion.config,
                seconds=time.perf_counter() - began,
                note=dict(suggestion.note),
                **outcome,
            )
        )


def follow_scores(evaluate: Evaluation, stage: Stage, budget: Budget) -> None:
    """Trials that are scikit-learn's own fits, until the budget's end or a finite space's."""
    while not budget.over(stage):
        suggestion = stage.ask()
        if any(trial.config == suggestion.config for trial in stage.trials):
            return  # all of a finite space was tried
        began = time.perf_counter()
        trial = Trial(stage.name, suggestion.number, suggestion.config, None)
        try:
            scores = evaluate(trial)
        except KeyboardInterrupt:
            if not stage.trials:
                raise
            budget.interrupt()
            return
        stage.finish(
            replace(
                trial,
                value=-float(scores.mean()) if np.isfinite(scores.mean()) else None,
                folds=[-float(score) for score in scores],
                seconds=time.perf_counter() - began,
                note=dict(suggestion.note),
            )
        )


def _by_path(
    space: SearchSpace, config: Mapping[str, Any], gradient: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A gradient by names of parameters as one by paths of the space."""
    return {
        path: gradient[name_of(path)].tolist()
        for path in space.flatten(config)
        if name_of(path) in gradient and space.domains[path].differentiable
    }


def part_of(trials: int) -> int:
    """Trials for the first part of a search, and for the second."""
    return max(1, math.ceil(_PART * trials))
