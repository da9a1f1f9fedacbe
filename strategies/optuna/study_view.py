"""A study as a searcher sees it: what is known, and what is being evaluated."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from strategies.intake import Intake
from strategies.observation import Observation, Report, Suggestion
from strategies.optuna.names import Names
from strategies.optuna.patience import patiently
from strategies.optuna.trials import (
    REPORT,
    read_attribute,
    report_of,
    result_of,
    write_attribute,
)
from strategies.space import Point, SearchSpace
from strategies.state import reading

#: The system attribute of a trial that holds what was suggested for it.
SUGGESTION = "hypergrad:suggestion"


class _Known(NamedTuple):
    """What a trial means to a searcher: an observation if it has ended, or a suggestion."""

    trial: FrozenTrial
    observation: Observation | None
    pending: Suggestion | None
    #: Numbers of trials whose process died; this one takes their place, they have not failed.
    retried: tuple[int, ...]


@dataclass
class _Past:
    """What the trials that were looked at come to."""

    trials: Sequence[FrozenTrial] = ()
    seen: int = 0
    history: list[Observation] = field(default_factory=list)
    retried: set[int] = field(default_factory=set)


class StudyView:
    """The trials of a study in a search space, each looked at once.

    Not for several threads at once: its owner holds a lock.

    **Arguments:**

    - `names`: of the parameters. Trials that have no configuration in their space are passed over.
    - `intake`: makes observations of reports.
    """

    def __init__(self, names: Names, intake: Intake) -> None:
        self.names = names
        self._intake = intake
        self._known: dict[int, _Known] = {}
        self._past = _Past()

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.names.space

    def look(
        self, study: Study, trials: Sequence[FrozenTrial], current: FrozenTrial | None = None
    ) -> tuple[list[Observation], list[Suggestion]]:
        """What is known, values to be minimised, and what is being evaluated besides `current`.

        **Arguments:**

        - `study`: whose trials they are.
        - `trials`: of this study. If they are the same object as before they have only grown, by
          finished trials, and are taken up where they ended.
        - `current`: the trial that a suggestion is made for, if there is one.
        """
        maximise = maximised(study)
        number = None if current is None else current.number
        past = self._past = self._past if self._past.trials is trials else _Past(trials)
        pending: list[Suggestion] = []
        for trial in itertools.islice(trials, past.seen, None):
            seen = self._known.get(trial._trial_id)
            if seen is None or not (seen.trial is trial or _same(seen.trial, trial)):
                seen = self._look(trial, maximise)
                if trial.datetime_complete is not None:
                    self._known[trial._trial_id] = seen
            past.retried.update(seen.retried)
            if seen.observation is not None:
                past.history.append(seen.observation)
            elif seen.pending is not None and seen.pending.number != number:
                pending.append(seen.pending)
        past.seen = len(trials)
        history = past.history.copy()
        if not past.retried:
            return history, pending
        return (
            [one for one in history if one.number not in past.retried],
            [one for one in pending if one.number not in past.retried],
        )

    def keep(self, study: Study, trial: FrozenTrial, suggestion: Suggestion) -> None:
        """Store what is suggested for a trial, for those who look at the study from now on."""
        flat = self.space.flatten(suggestion.config)
        if self.names.inexact:
            flat |= self.names.from_params(self.names.to_params(suggestion.config))
        config = self.space.to_json(self.space.point(flat))
        write_attribute(
            {"config": config, "note": dict(suggestion.note)},
            SUGGESTION,
            lambda key, part: patiently(
                lambda: study._storage.set_trial_system_attr(trial._trial_id, key, part)
            ),
        )

    def suggested(self, trial: FrozenTrial) -> dict[str, Any]:
        """Optuna's parameters that were suggested for a trial; none if nothing was."""
        found = self._suggested(trial)
        return {} if found is None else self.names.to_params(found[0])

    def _look(self, trial: FrozenTrial, maximise: Sequence[bool]) -> _Known:
        running = trial.state == TrialState.RUNNING
        return _Known(
            trial,
            self._observation(trial, maximise) if trial.state.is_finished() else None,
            self._pending(trial) if running else None,
            _retried(trial),
        )

    def _observation(self, trial: FrozenTrial, maximise: Sequence[bool]) -> Observation | None:
        point = point_of(trial, self.names)
        if point is None:
            return None
        return self._intake(
            point,
            self.names.translated(self._report(trial), point.flat),
            number=trial.number,
            note=_note(trial, point, self._suggested(trial)),
            status="pruned" if trial.state == TrialState.PRUNED else "complete",
            maximise=maximise,
        )

    def _report(self, trial: FrozenTrial) -> Report:
        try:
            return report_of(trial)
        except ValueError as error:
            self._intake.complain(trial.number, REPORT, "only the value of a trial counts", error)
            return result_of(trial)

    def _pending(self, trial: FrozenTrial) -> Suggestion | None:
        suggested = self._suggested(trial)
        point = point_of(trial, self.names)
        if point is None:
            return None if suggested is None else Suggestion(trial.number, *suggested)
        return Suggestion(trial.number, point.config, _note(trial, point, suggested), point)

    def _suggested(self, trial: FrozenTrial) -> tuple[dict[str, Any], Any] | None:
        """Configuration and note that were suggested for a trial, if they were, in this space."""
        try:
            with reading():
                stored = read_attribute(SUGGESTION, trial.system_attrs)
                if stored is None:
                    return None
                return self.space.from_json(stored["config"]), dict(stored["note"])
        except ValueError:
            return None


def maximised(study: Any) -> list[bool]:
    """Which of a study's objectives are maximised."""
    return [direction == StudyDirection.MAXIMIZE for direction in study.directions]


def _retried(trial: FrozenTrial) -> tuple[int, ...]:
    """The numbers that Optuna has stored of trials that this one repeats."""
    stored = trial.system_attrs.get("retry_history")
    return tuple(n for n in stored if isinstance(n, int)) if isinstance(stored, list) else ()


def point_of(trial: FrozenTrial, names: Names) -> Point | None:
    """The configuration that a trial really has, if it has one in the space.

    Enqueued and fixed values are the user's, whatever was suggested.
    """
    try:
        return names.space.point(names.from_params(trial.params))
    except ValueError:
        return None


def context_of(trial: FrozenTrial) -> dict[str, Any]:
    """A note with the context that a trial was suggested for; empty if there is none."""
    try:
        with reading():
            stored = read_attribute(SUGGESTION, trial.system_attrs)
            note = {} if stored is None else dict(stored["note"])
    except ValueError:
        return {}
    return {"context": note["context"]} if "context" in note else {}


def _note(
    trial: FrozenTrial, point: Point, suggested: tuple[dict[str, Any], Any] | None
) -> Mapping[str, Any]:
    """The searcher's remark; of a configuration that it did not suggest, the context alone."""
    if suggested is not None and suggested[0] == point.config:
        return suggested[1]
    return context_of(trial)


def _same(known: FrozenTrial, trial: FrozenTrial) -> bool:
    """Whether a storage that makes its trials anew, or another study, has made this one again."""
    ended = known.datetime_complete == trial.datetime_complete
    return ended and known.number == trial.number
