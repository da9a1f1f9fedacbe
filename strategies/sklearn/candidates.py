"""Rows of `cv_results_`: what scikit-learn itself has fitted and scored."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics._scorer import _MultimetricScorer

from strategies.sklearn.trials import Journal, Trial


class Row(NamedTuple):
    """A trial, and what scikit-learn found of each fold."""

    trial: Trial
    out: list[dict[str, Any]]


@dataclass
class Candidates:
    """What scikit-learn has fitted and scored, a row of `cv_results_` each.

    - `journal`: where finished rows are kept.
    - `params`: what `set_params` takes, from a configuration.
    - `restored`: rows of an earlier run, and rows whose fits all failed.
    - `fitted`: trials of the rows that `BaseSearchCV` has.
    """

    journal: Journal
    params: Callable[[Mapping[str, Any]], dict[str, Any]]
    restored: list[Row] = field(default_factory=list)
    fitted: list[Trial] = field(default_factory=list)

    def restore(self) -> None:
        """Take over what the journal has."""
        known = {trial.of: trial for trial in self.journal.trials}
        for fit in self.journal.fits:
            stage, number = fit["of"]
            trial = known.get((stage, number)) or Trial(stage, number, fit["config"], None)
            self.restored.append(Row(trial, fit["out"]))

    @property
    def known(self) -> list[tuple[str, int]]:
        """Of which trials there is a row."""
        return [trial.of for trial in (*(row.trial for row in self.restored), *self.fitted)]

    @property
    def last_restored(self) -> Trial:
        """The trial of the last restored row that has a fit which did not fail."""
        return next(
            row.trial
            for row in reversed(self.restored)
            if any(item["fit_error"] is None for item in row.out)
        )

    def scores(self, trial: Trial, metric: Any) -> np.ndarray | None:
        """Scores of all folds, for the metric that decides, if there is a restored row."""
        for row in self.restored:
            if row.trial.of == trial.of:
                scores = [item["test_scores"] for item in row.out]
                if isinstance(scores[0], dict):
                    chosen = metric if metric in scores[0] else next(iter(scores[0]))
                    scores = [each[chosen] for each in scores]
                return np.array(scores, float)
        return None

    def keep(self, trial: Trial, out: list[dict[str, Any]]) -> None:
        """Write a finished row to the journal."""
        self.journal.add_fit(
            {
                "of": [trial.stage, trial.number],
                "config": trial.config,
                "out": [
                    {name: value for name, value in item.items() if name != "parameters"}
                    for item in out
                ],
            }
        )

    def failed(self, trial: Trial, scores: Any, n_splits: int, train: bool) -> None:
        """A row of fits that all failed; `scores` are what stands for theirs."""
        item: dict[str, Any] = {
            "fit_error": "failed",
            "test_scores": scores,
            "n_test_samples": 0,
            "fit_time": 0.0,
            "score_time": 0.0,
        }
        if train:
            item["train_scores"] = scores
        out = [dict(item) for _ in range(n_splits)]
        self.restored.append(Row(trial, out))
        self.keep(trial, out)


class Evaluation:
    """Scikit-learn's fits and scores of a candidate, one candidate at a time."""

    def __init__(self, worker: Any, run: Any, evaluate: Any, context: Any):
        self.worker, self.run, self.evaluate, self.context = worker, run, evaluate, context
        self.count = 0
        self.trial: Trial | None = None

    def __call__(self, trial: Trial) -> np.ndarray:
        """Scores of all folds, for the metric that decides; known ones are not fitted again."""
        known = self.run.candidates.scores(trial, self.run.metric)
        return self.fit(trial) if known is None else known

    def fit(self, trial: Trial) -> np.ndarray:
        """The same, fitted."""
        worker, candidates = self.worker, self.run.candidates
        context = self.context.subcontext(
            task_name="candidate", max_subtasks=worker.n_splits_, sequential_subtasks=False
        ).call_on_fit_task_begin(estimator=worker)
        self.trial = trial
        more = {name: [value] for name, value in columns_of(trial).items()}
        try:
            results = self.evaluate(
                [candidates.params(trial.config)], more_results=more, callback_ctx=context
            )
        except ValueError as error:
            # All folds of one candidate failed; that others may not, scikit-learn cannot know.
            text = str(error).strip()
            first = not candidates.known
            if worker.error_score == "raise" or first or not text.startswith("All the"):
                raise
            score = worker.error_score
            if isinstance(self.run.scorers, _MultimetricScorer):
                score = {name: score for name in self.run.scorers._scorers}
            candidates.failed(trial, score, worker.n_splits_, worker.return_train_score)
            return np.full(worker.n_splits_, np.nan)
        finally:
            context.call_on_fit_task_end(estimator=worker)
        self.count += 1
        metric = self.run.metric
        if not isinstance(metric, str) or f"mean_test_{metric}" not in results:
            metric = next(n[len("mean_test_") :] for n in results if n.startswith("mean_test_"))
        return np.array(
            [results[f"split{k}_test_{metric}"][-1] for k in range(worker.n_splits_)], float
        )

    def fitted(self, out: list[dict[str, Any]]) -> None:
        """Called while results are formed, after the fits of a candidate."""
        assert self.trial is not None
        self.run.candidates.fitted.append(self.trial)
        self.run.candidates.keep(self.trial, out)


def columns_of(trial: Trial) -> dict[str, Any]:
    """The columns `hypergrad_*` of `cv_results_`."""
    parts = [np.ravel(np.asarray(part, float)) for part in trial.gradient.values()]
    gradient = np.concatenate(parts) if parts else np.full(1, np.nan)
    return {
        "hypergrad_stage": trial.stage,
        "hypergrad_trial": trial.number,
        "hypergrad_move": str(trial.note.get("move", trial.note.get("origin", "model"))),
        # Of the folds alone: a prior on penalties is a part of the trial's value.
        "hypergrad_criterion": float(np.mean(trial.folds)) if trial.folds else math.nan,
        "hypergrad_gradient_norm": float(np.linalg.norm(gradient)),
        "hypergrad_inner_residual": math.nan if trial.residual is None else trial.residual,
        "hypergrad_seconds": trial.seconds,
    }
