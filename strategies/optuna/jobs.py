"""A scheduler's jobs as trials of a study: handed out, and told, by whoever works on them.

Each job is a trial of its own, with the same parameters at every rung: those at the maximum
resource are complete, those at lower rungs pruned. Everything is in the study.
"""

import contextlib
import math
import warnings
from typing import Any

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from strategies.arguments import integer
from strategies.optuna.names import Names
from strategies.optuna.patience import patiently
from strategies.optuna.trials import (
    read_attribute,
    report_of,
    suggest,
    write_attribute,
)
from strategies.schedulers import Job, Scheduler
from strategies.state import reading

#: The attribute of a trial that says which job it is: all of it in that of the system, without
#: configuration and note in that of the user.
JOB = "hypergrad:job"
#: The user attribute of a trial whose failure is a result, not an interruption.
FAILED = "hypergrad:failed"
#: The user attribute of a trial whose job another process was faster with.
SUPERSEDED = "hypergrad:superseded"


class StudyJobs:
    """The jobs of a scheduler in a study.

    **Arguments:**

    - `study`, `schedule`, `alone`: see `strategies.optuna.run_schedule`.
    """

    def __init__(self, study: Study, schedule: Scheduler, *, alone: bool) -> None:
        self._study, self._schedule, self._alone = study, schedule, alone
        self._names = Names(schedule.searcher.space)
        self._maximise = study.direction == StudyDirection.MAXIMIZE
        self._told: set[int] = set()
        self._last: dict[int, int] = {}
        self._interrupted: dict[tuple[int, int], int] = {}
        if alone:
            for trial, _ in _jobs(study, self._names, self._schedule):
                if trial.state == TrialState.RUNNING:
                    study.tell(trial.number, state=TrialState.FAIL)

    def ask(self) -> tuple[Trial, Job] | None:
        """The next job and its trial, which runs now; `None` if there is none now."""
        study = self._study
        while True:
            if not self._alone:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    fail_stale_trials(study)
            self.synchronise()
            if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                job = self._schedule.ask()
                if job is None:
                    return None
                last = self._last.get(job.number)
                _enqueue(study, self._schedule, self._names, job, last, self._interrupted)
            trial_id = study._pop_waiting_trial_id()
            if trial_id is None:
                continue  # another process took it
            # SQLite may hand one trial to two processes; the other one may have told it by now.
            with contextlib.suppress(UpdateFinishedTrialError):
                found = self._begun(trial_id)
                if found is not None:
                    return found

    def _begun(self, trial_id: int) -> tuple[Trial, Job] | None:
        """A trial that was waiting, and its job; `None` if it is not worth to be worked on."""
        study = self._study
        mine, known = Trial(study, trial_id), study._storage.get_trial(trial_id)
        if known.state.is_finished():
            return None
        try:
            stored = _job(known, self._names)
        except ValueError as error:
            study.tell(mine, state=TrialState.FAIL)
            warnings.warn(f"{error}; it counts as failed", stacklevel=4)
            return None
        if stored is None:
            study.tell(mine, state=TrialState.FAIL)
            raise ValueError(
                "the study has an enqueued trial that is no job of a scheduler; enqueue points as "
                "the searcher's `first`"
            )
        if _superseded(study, self._names, self._schedule, mine.number, stored):
            mine.set_user_attr(SUPERSEDED, True)
            study.tell(mine, state=TrialState.FAIL, skip_if_finished=True)
            return None
        if is_heartbeat_enabled(storage := study._storage):
            assert isinstance(storage, BaseHeartbeat)
            # The thread's first beat may come after a death; a trial without one is never stale.
            storage.record_heartbeat(trial_id)
        return mine, Job(
            number=stored["number"],
            config=suggest(mine, self._names.space),
            resource=stored["resource"],
            resume_from=stored["resume_from"],
            level=stored["level"],
        )

    def tell(self, trial: Trial, job: Job, value: float | None, problem: str) -> None:
        """End the trial of a job; without a finite value it has failed, by `problem`."""
        study = self._study
        with contextlib.suppress(UpdateFinishedTrialError):
            # Another process may have taken this one for dead; then the job is done again there.
            if value is None or not math.isfinite(value):
                patiently(lambda: trial.set_user_attr(FAILED, problem))
                ended: dict[str, Any] = {"state": TrialState.FAIL}
            else:
                step = int(job.resource) if float(job.resource).is_integer() else job.level
                patiently(lambda: trial.report(value, step))
                top = job.level == self._schedule.top
                ended = {"values": value} if top else {"state": TrialState.PRUNED}
            patiently(lambda: study.tell(trial, **ended, skip_if_finished=True))

    def synchronise(self) -> None:
        """Bring the scheduler up to the study, in the order in which trials finished."""
        schedule = self._schedule
        # A study that was grown before may know rungs that this scheduler will only have again when
        # it is grown, too.
        new = [
            (t, j)
            for t, j in _jobs(self._study, self._names, schedule)
            if t.number not in self._told and j["level"] <= schedule.top
        ]
        for trial, stored in new:
            # The first trial of a configuration says what it is, whoever else proposed another.
            schedule.take_up(stored["number"], stored["level"], stored["config"], stored["note"])
            if trial.state == TrialState.FAIL and FAILED not in trial.user_attrs:
                self._told.add(trial.number)
                self._interrupted[stored["number"], stored["level"]] = trial.number
                schedule.forget(stored["number"])
        finished = [(t, j) for t, j in new if t.state.is_finished() and t.number not in self._told]
        for trial, stored in sorted(finished, key=lambda f: (f[0].datetime_complete, f[0].number)):
            self._told.add(trial.number)
            self._last[stored["number"]] = trial.number
            _resume(schedule, stored)
            pending = schedule.job(stored["number"])
            # What the scheduler knows already must not be taken for a later rung's result.
            if pending is not None and pending.level == stored["level"]:
                report = report_of(trial)
                schedule.tell(stored["number"], report, maximise=self._maximise, strict=False)
        for trial, stored in new:
            if not trial.state.is_finished():
                _resume(schedule, stored)


def _jobs(
    study: Study, names: Names, schedule: Scheduler
) -> list[tuple[FrozenTrial, dict[str, Any]]]:
    """The trials of a study that are jobs of a scheduler, with what is known of the job.

    A trial whose job is damaged, or of a rung with another resource, is passed over with a warning.

    **Raises:** `ValueError` if no job fits space and rungs.
    """
    resources = schedule.resources
    found, damaged = [], []
    for trial in study.get_trials(deepcopy=False):
        if SUPERSEDED in trial.user_attrs:
            continue
        try:
            stored = _job(trial, names)
            if stored is not None and stored["level"] < len(resources):
                _expect_resource(trial, stored, resources[stored["level"]])
        except ValueError as error:
            damaged.append(error)
            continue
        if stored is not None:
            found.append((trial, stored))
    if damaged and not found:
        raise damaged[0]
    for problem in damaged:
        # The same text from the same place: Python shows it once.
        warnings.warn(f"{problem}; it is passed over", stacklevel=2)
    return found


def _job(trial: FrozenTrial, names: Names) -> dict[str, Any] | None:
    """What is known of the job that a trial is, its configuration plain; `None` if it is none.

    **Raises:** `ValueError` if what is stored is damaged or not of this space.
    """
    try:
        with reading():
            stored = read_attribute(JOB, trial.system_attrs)
            if stored is None:
                return None
            number, level = (integer(key, stored[key], 0) for key in ("number", "level"))
            config = names.space.from_json(stored["config"])
            own = {key: stored[key] for key in ("resource", "resume_from")}
            own |= {"number": number, "level": level, "config": config}
            for key in own["resource"], own["resume_from"]:
                float(key)
            return own | {"note": dict(stored["note"])}
    except ValueError as error:
        raise ValueError(f"trial {trial.number}: {JOB!r}: {error}") from None


def _expect_resource(trial: FrozenTrial, stored: dict[str, Any], resource: int | float) -> None:
    if stored["resource"] != resource:
        raise ValueError(
            f"trial {trial.number}: {JOB!r}: expected the resource {resource} at level "
            f"{stored['level']}, received {stored['resource']!r:.40}, as of another max_resource, "
            "min_resource or eta"
        )


def _resume(schedule: Scheduler, stored: dict[str, Any]) -> None:
    """Make a job of a known configuration pending, unless it has its result."""
    candidate = schedule.candidates[stored["number"]]
    schedule.take_up(candidate.number, stored["level"], candidate.config, candidate.note)


def _superseded(
    study: Study, names: Names, schedule: Scheduler, number: int, stored: dict[str, Any]
) -> bool:
    """Whether another process was faster with the same job, or proposed for the same number.

    The trial with the smaller number wins; it exists before this one does, so all processes agree.
    """
    for trial, other in _jobs(study, names, schedule):
        if trial.number >= number or other["number"] != stored["number"]:
            continue
        dead = trial.state == TrialState.FAIL and FAILED not in trial.user_attrs
        if other["config"] != stored["config"] or (other["level"] == stored["level"] and not dead):
            return True
    return False


def _enqueue(
    study: Study,
    schedule: Scheduler,
    names: Names,
    job: Job,
    last: int | None,
    interrupted: dict[tuple[int, int], int],
) -> None:
    known = {
        "number": job.number,
        "level": job.level,
        "resource": job.resource,
        "resume_from": job.resume_from,
        "continues": last,
        "interrupted": interrupted.get((job.number, job.level)),
    }
    stored: dict[str, Any] = {"fixed_params": names.to_params(job.config)}
    note = dict(schedule.candidates[job.number].note)
    write_attribute(
        {**known, "config": names.space.to_json(job.config), "note": note}, JOB, stored.__setitem__
    )
    # As `Study.enqueue_trial` does, which takes no attributes of the system.
    study.add_trial(
        create_trial(state=TrialState.WAITING, system_attrs=stored, user_attrs={JOB: known})
    )
