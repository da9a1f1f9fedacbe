"""A search of ours as a study of Optuna, for its plots, its importance and its dashboard."""

import json
import math
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from strategies.observation import Observation
from strategies.optuna.names import Names
from strategies.optuna.trials import (
    REPORT,
    SUMMARY,
    _summary,
    constraint_attributes,
    write_attribute,
)
from strategies.searched import searched
from strategies.space import SearchSpace

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
#: Seconds beyond which a cost is no time.
_LONGEST = 1e8
#: The user attributes of a trial that hold its gradient and its number in the search.
GRADIENT, NUMBER = "gradient", "number"


def study_of(
    source: Any,
    space: SearchSpace | None = None,
    *,
    study_name: str | None = None,
    storage: Any = None,
) -> optuna.Study:
    """A study with all trials of a search.

    An array has a parameter for each entry. A trial's gradient is its user attribute `gradient`, by
    path, and what `strategies.optuna.report` would have stored is there too: `observations_of`
    finds the same observations in the study. The value at a resource is an intermediate value, and
    results of one trial at several resources are one trial, pruned if it did not
    reach the largest that four have. Values are minimised. Several objectives are several
    directions, constraints those of the trials.

    **Arguments:**

    - `source`, `space`: see `strategies.searched.searched`.
    - `study_name`, `storage`: as for `optuna.create_study`, for instance `"sqlite:///study.db"`,
      which `optuna-dashboard` shows. Default: in memory.

    **Raises:** `ValueError` naming the hyperparameter that Optuna cannot express.
    """
    if not isinstance(study_name, str | None):
        raise ValueError(f"'study_name': expected a text, received {study_name!r:.80}")
    url = isinstance(storage, str) and "://" in storage
    if not (url or isinstance(storage, BaseStorage | None)):
        raise ValueError(f"'storage': expected a storage or its URL, received {storage!r:.80}")
    seen = searched(source, space)
    names = Names(seen.space)
    objectives = max((len(item.values) for item in seen.history), default=1)
    study = optuna.create_study(
        study_name=study_name, storage=storage, directions=["minimize"] * max(objectives, 1)
    )
    groups: dict[Any, list[Observation]] = {}
    for i, item in enumerate(seen.history):
        groups.setdefault(("given", i) if item.number is None else item.number, []).append(item)
    # Optuna counts seconds; only the length of a trial is known, which ends when this is made.
    now = datetime.now()
    # Optuna compares all complete trials, so those that were stopped at a lower rung are pruned.
    least = min((item.resource or 0.0 for item in seen.complete), default=0.0)
    study.add_trials([trial_of(names, items, least, now) for items in groups.values()])
    return study


def trial_of(names: Names, items: list[Observation], least: float, now: datetime) -> FrozenTrial:
    """One trial of all results of one suggestion; what it is said to be is the last of them."""
    items = sorted(items, key=lambda item: item.resource or 0.0)
    last = items[-1]
    params = {
        name: value
        for name, value in names.to_params(last.config).items()
        if name in names.distributions
    }
    state = _STATES[last.status]
    if last.status == "complete" and (last.resource or 0.0) < least:
        state = TrialState.PRUNED
    report = last.as_report()
    system: dict[str, Any] = constraint_attributes(last.constraints)
    write_attribute(report.to_json(), REPORT, system.__setitem__)
    user: dict[str, Any] = {SUMMARY: _summary(report)}
    if last.number is not None:
        user[NUMBER] = last.number
    if last.gradient:
        user[GRADIENT] = json.dumps(report.to_json()["gradient"])
    steps = {
        int(item.resource): float(item.value)
        for item in items
        if item.resource is not None and item.value is not None and math.isfinite(item.value)
    }
    trial = optuna.trial.create_trial(
        state=state,
        values=list(last.values or [float(last.value or 0.0)])
        if state == TrialState.COMPLETE
        else None,
        params=params,
        distributions={name: names.distributions[name] for name in params},
        user_attrs=user,
        system_attrs=system,
        intermediate_values=steps,
    )
    if last.cost is not None and 0.0 <= last.cost < _LONGEST:
        trial.datetime_start = now - timedelta(seconds=last.cost)
        trial.datetime_complete = now
    return trial
