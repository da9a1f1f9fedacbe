"""What a search of the embedded engine returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.space import Config


@dataclass(frozen=True)
class Trial:
    """One finished trial, as a callback sees it and as `Result.trials` keeps it.

    - `number`: of the suggestion.
    - `config`: what was evaluated (the trial's own, if it tuned itself).
    - `value`: what the objective returned; `None` if the trial failed.
    - `status`: `"complete"` or `"failed"`.
    - `seconds`: wall time of the objective.
    - `note`: the searcher's remark.
    - `info`: what the objective reported beside value and gradient.
    - `error`: the exception of a failed trial.
    """

    number: int
    config: Config
    value: float | None
    status: str
    seconds: float
    note: Mapping[str, Any]
    info: Mapping[str, Any]
    error: BaseException | None = None


@dataclass(frozen=True)
class Result:
    """What a search found.

    - `best_config`, `best_value`: the best complete trial; `None` if every trial failed.
    - `history`: every observation, points that were not suggested first, then by number.
    - `trials`: the trials of this call (not those that an earlier, resumed call ran).
    - `ledger`: what was asked and told; pass it on as `searcher` to continue.
    """

    best_config: Config | None
    best_value: float | None
    history: list[Observation]
    trials: list[Trial]
    ledger: Ledger

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            known = "best_config, best_value, history, trials, ledger, best_so_far(), table()"
            raise AttributeError(f"a Result has no {name!r}; it has {known}")

    def best_so_far(self) -> np.ndarray:
        """The incumbent's value after each observation, NaN before the first complete one."""
        values = [np.inf if o.status != "complete" else o.value for o in self.history]
        best = np.minimum.accumulate(np.array(values, float)) if values else np.empty(0)
        return np.where(np.isinf(best), np.nan, best)

    def table(self) -> list[dict[str, Any]]:
        """One flat dict per observation: number, value, status, cost, and the configuration."""
        return [
            {
                "number": item.number,
                "value": item.value,
                "status": item.status,
                "cost": item.cost,
                **self.ledger.space.flatten(item.config),
            }
            for item in self.history
        ]

    def to_optuna(self, **options: Any) -> Any:
        """An `optuna.Study` with all trials, for Optuna's plots, importance and dashboard.

        Arguments are those of `strategies.optuna.study_of`: `study_name` and `storage`.
        """
        from strategies.optuna import study_of

        return study_of(self, **options)


__all__ = ["Result", "Trial"]
