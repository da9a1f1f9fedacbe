"""What a search of the embedded engine returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies.front import front, hypervolume, knee
from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.space import Config


@dataclass(frozen=True)
class Trial:
    """One finished trial, as a callback sees it and as `Result.trials` keeps it.

    - `number`: of the suggestion.
    - `config`: what was evaluated (the trial's own, if it tuned itself).
    - `value`: what the objective returned, of several objectives the first; `None` if the trial
      failed.
    - `status`: `"complete"` or `"failed"`.
    - `seconds`: wall time of the objective.
    - `note`: the searcher's remark.
    - `info`: what the objective reported beside value and gradient.
    - `error`: the exception of a failed trial.
    - `values`: of a search with several objectives.
    - `constraints`: what it reported, by name; feasible if none is above 0.
    """

    number: int
    config: Config
    value: float | None
    status: str
    seconds: float
    note: Mapping[str, Any]
    info: Mapping[str, Any]
    error: BaseException | None = None
    values: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a search found.

    - `best_config`, `best_value`: the best complete trial; `None` if every trial failed. It is
      never infeasible while a feasible one is known; if none is, it is the one with the least
      violation. Of several objectives, the best in the first.
    - `history`: every observation, points that were not suggested first, then by number.
    - `trials`: the trials of this call (not those that an earlier, resumed call ran).
    - `ledger`: what was asked and told; pass it on as `searcher` to continue.
    - `stopped`: why the search ended before its trials were used up, in words; `None` if it did
      not.
    """

    best_config: Config | None
    best_value: float | None
    history: list[Observation]
    trials: list[Trial]
    ledger: Ledger
    stopped: str | None = field(default=None, kw_only=True)

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            known = (
                "best_config, best_value, history, trials, ledger, stopped, front, knee, "
                "hypervolume(), best_so_far(), table()"
            )
            raise AttributeError(f"a Result has no {name!r}; it has {known}")

    @property
    def front(self) -> list[Observation]:
        """The feasible observations that none dominates; see `strategies.front`."""
        return front(self.history)

    @property
    def knee(self) -> Observation | None:
        """The member of the front with the best trade-off; see `strategies.front`."""
        return knee(self.history)

    def hypervolume(self, reference: Sequence[float]) -> float:
        """The volume that the front dominates, up to `reference`; see `strategies.front`."""
        return hypervolume(self.history, reference)

    def best_so_far(self) -> np.ndarray:
        """The incumbent's value after each observation, NaN before the first that is feasible."""
        values = [
            o.value if o.status == "complete" and o.feasible else np.inf for o in self.history
        ]
        best = np.minimum.accumulate(np.array(values, float)) if values else np.empty(0)
        return np.where(np.isinf(best), np.nan, best)

    def table(self) -> list[dict[str, Any]]:
        """One flat dict per observation: number, value, status, cost, and the configuration.

        Several objectives are `"values[0]"` and so on, constraints `"constraints[NAME]"`.
        """
        return [
            {
                "number": item.number,
                "value": item.value,
                "status": item.status,
                "cost": item.cost,
                **{f"values[{i}]": each for i, each in enumerate(item.values)},
                **{f"constraints[{name}]": each for name, each in item.constraints.items()},
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
