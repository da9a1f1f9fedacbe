"""Trials of a stage, and when to stop."""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strategies.sklearn.objective import CrossValidation
from strategies.sklearn.spaces import Objects, name_of, params_of
from strategies.sklearn.trials import Journal, Stage, Trial
from strategies.space import SearchSpace
from strategies.stopping import Stop, Watch

# An improvement below this part of the criterion's standard error counts for nothing.
_WORTH = 0.01
# Share of the trials that look for the best penalty that all features share.
_SHARED = 1.0 / 3.0
_INTERRUPTED = "it was interrupted"


@dataclass
class Budget:
    """When to stop.

    - `trials`: in all.
    - `patience`: trials of a stage without an improvement; `None` for no such end.
    - `deadline`: on the monotonic clock; `None` for none.
    - `stop`: what else ends the search; patience and expected gain are those of each stage.
    - `stopped`: why it ended before its trials were used up, in words.
    """

    trials: int
    patience: int | None
    deadline: float | None
    stop: Stop | None = None
    stopped: str | None = None
    _began: float = field(default_factory=time.monotonic)
    _watches: dict[str, Watch] = field(default_factory=dict)

    def spent(self, journal: Journal) -> bool:
        """Whether no further trial may start."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.stopped == _INTERRUPTED or len(journal.trials) >= self.trials

    def over(self, stage: Stage) -> bool:
        """Whether a stage begins no further trial, by `stop` or as the search has no time left.

        A search has one trial at least.
        """
        if not stage.journal.trials:
            return False
        if self.stop is not None:
            space = stage.ledger.space
            watch = self._watches.setdefault(stage.name, Watch(self.stop, space, self._began))
            cost = sum(trial.seconds for trial in stage.journal.trials)
            if watch.over(stage.ledger.history, cost):
                self.stopped = self.stopped or watch.reason
                return True
        return self.spent(stage.journal)

    def interrupt(self) -> None:
        """Ctrl-C: no further trial begins, and the best so far is fitted and scored."""
        self.stopped = _INTERRUPTED

    def settled(self, trials: list[Trial]) -> bool:
        """Whether the last trials improved nothing worth another one."""
        best, idle = math.inf, 0
        for trial in trials:
            if trial.value is None:
                idle += 1
                continue
            spread = np.std(trial.folds) / math.sqrt(max(len(trial.folds), 1))
            if trial.value < best - _WORTH * spread:
                best, idle = trial.value, 0
            else:
                best, idle = min(best, trial.value), idle + 1
        return self.patience is not None and idle >= self.patience


def follow_gradients(
    objective: CrossValidation,
    stage: Stage,
    budget: Budget,
    limit: int,
    objects: Objects,
    strict: bool,
) -> None:
    """Trials of a stage until its limit, the budget's end, or nothing improves any more.

    **Arguments:**

    - `objects`: what labels in configurations stand for.
    - `strict`: a trial that fails is an error. Otherwise only a first one is.
    """
    while len(stage.trials) < limit and not budget.over(stage) and not budget.settled(stage.trials):
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
            outcome = {
                "value": found.value if math.isfinite(found.value) else None,
                "gradient": _by_path(stage.ledger.space, suggestion.config, found.gradient),
                "folds": found.folds.tolist(),
                "residual": found.residual,
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


def _by_path(
    space: SearchSpace, config: Mapping[str, Any], gradient: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A gradient by names of parameters as one by paths of the space."""
    return {
        path: gradient[name_of(path)].tolist()
        for path in space.flatten(config)
        if name_of(path) in gradient and space.domains[path].differentiable
    }


def shared_limit(trials: int) -> int:
    """Trials for the penalty that all features share."""
    return max(1, math.ceil(_SHARED * trials))


__all__ = ["Budget", "follow_gradients", "shared_limit"]
