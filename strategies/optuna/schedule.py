"""Schedulers on Optuna: a loop that asks and tells, and a pruner.

A pruner of Optuna can end a trial, and nothing else: no pausing, no promotion. So Hyperband, its
iterative deepening and ASHA run as a loop of jobs. Each job is a trial of its own, with the same
parameters at every rung: those at the maximum resource are complete, those at lower rungs pruned.
Everything is in the study; a loop that is started again continues.
"""

import contextlib
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread, is_heartbeat_enabled
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from strategies.arguments import integer
from strategies.observation import Report
from strategies.optuna.names import Names
from strategies.optuna.trials import (
    keep_report,
    read_attribute,
    report_of,
    suggest,
    write_attribute,
)
from strategies.schedulers import Job, Scheduler
from strategies.schedulers.job import rung_resources
from strategies.state import reading

#: The attribute of a trial that says which job it is: all of it in that of the system, without
#: configuration and note in that of the user.
JOB = "hypergrad:job"
#: The user attribute of a trial whose failure is a result, not an interruption.
FAILED = "hypergrad:failed"
#: The user attribute of a trial whose job another process was faster with.
SUPERSEDED = "hypergrad:superseded"


def run_schedule(
    study: Study,
    objective: Callable[[Trial, Job], Any],
    schedule: Scheduler,
    *,
    jobs: int | None = None,
    alone: bool = True,
) -> Scheduler:
    """Work on a scheduler's jobs, each as a trial of the study, until it has finished.

    **Arguments:**

    - `study`: the study. Its sampler is not used: the scheduler's searcher proposes.
    - `objective`: called with the trial and the `Job`; trains `job.config` up to `job.resource` and
      returns the value, or what `strategies.optuna.report` returns, or a `Report`. It may keep
      checkpoints under `job.number`, or as artifacts of trials: in
      `trial.user_attrs["hypergrad:job"]`, `"continues"` is the number of the trial that trained
      the configuration before, and `"interrupted"` that of one that began this very job and died.
    - `schedule`: a new scheduler, or one that has worked on this study; what the study knows is
      taken from the study.
    - `jobs`: stop after so many jobs of this call.
    - `alone`: no other process works on the study, so trials that are running were interrupted;
      their jobs are done again. With `False` several processes share the work. Jobs of one that
      died are done again if the storage has heartbeats (`RDBStorage(heartbeat_interval=...)`), and
      otherwise by a later call with `alone=True`. The loop returns when all that is left to do
      waits for others.

    **Returns:** The scheduler. Its `incumbent` counts results at the maximum resource only;
    after `deepen` that is not the study's best trial.
    """
    jobs = None if jobs is None else integer("jobs", jobs, 0)
    names = Names(schedule.searcher.space)
    maximise = study.direction == StudyDirection.MAXIMIZE
    told: set[int] = set()
    last: dict[int, int] = {}
    interrupted: dict[tuple[int, int], int] = {}

    def synchronise() -> None:
        """Bring the scheduler up to the study, in the order in which trials finished."""
        # A study that was grown before may know rungs that this scheduler will only have again when
        # it is grown, too.
        new = [
            (t, j)
            for t, j in _jobs(study, names)
            if t.number not in told and j["level"] <= schedule.top
        ]
        for trial, stored in new:
            # The first trial of a configuration says what it is, whoever else proposed another.
            schedule.take_up(stored["number"], stored["level"], stored["config"], stored["note"])
            if trial.state == TrialState.FAIL and FAILED not in trial.user_attrs:
                told.add(trial.number)
                interrupted[stored["number"], stored["level"]] = trial.number
                schedule.forget(stored["number"])
        finished = [(t, j) for t, j in new if t.state.is_finished() and t.number not in told]
        for trial, stored in sorted(finished, key=lambda f: (f[0].datetime_complete, f[0].number)):
            told.add(trial.number)
            last[stored["number"]] = trial.number
            _resume(schedule, stored)
            pending = schedule.job(stored["number"])
            # What the scheduler knows already must not be taken for a later rung's result.
            if pending is not None and pending.level == stored["level"]:
                schedule.tell(stored["number"], report_of(trial), maximise=maximise, strict=False)
        for trial, stored in new:
            if not trial.state.is_finished():
                _resume(schedule, stored)

    if alone:
        for trial, _ in _jobs(study, names):
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
    done = 0
    while jobs is None or done < jobs:
        if not alone:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                fail_stale_trials(study)
        synchronise()
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            job = schedule.ask()
            if job is None:
                break
            _enqueue(study, schedule, names, job, last.get(job.number), interrupted)
        trial_id = study._pop_waiting_trial_id()
        if trial_id is None:
            continue  # another process took it
        mine = Trial(study, trial_id)
        try:
            stored = _job(study._storage.get_trial(trial_id), names)
        except ValueError as error:
            study.tell(mine, state=TrialState.FAIL)
            warnings.warn(f"{error}; it counts as failed", stacklevel=2)
            continue
        if stored is None:
            study.tell(mine, state=TrialState.FAIL)
            raise ValueError(
                "the study has an enqueued trial that is no job of a scheduler; enqueue points as "
                "the searcher's `first`"
            )
        if _superseded(study, names, mine.number, stored):
            # SQLite may hand one trial to two processes; the other one has told it then.
            with contextlib.suppress(UpdateFinishedTrialError):
                mine.set_user_attr(SUPERSEDED, True)
                study.tell(mine, state=TrialState.FAIL, skip_if_finished=True)
            continue
        if is_heartbeat_enabled(storage := study._storage):
            assert isinstance(storage, BaseHeartbeat)
            # The thread's first beat may come after a death; a trial without one is never stale.
            storage.record_heartbeat(trial_id)
        with get_heartbeat_thread(trial_id, study._storage):
            _work(study, objective, schedule, mine, stored)
        done += 1
    synchronise()
    return schedule


def _jobs(study: Study, names: Names) -> list[tuple[FrozenTrial, dict[str, Any]]]:
    """The trials of a study that are jobs of a scheduler, with what is known of the job.

    A trial whose job is damaged is passed over with a warning.

    **Raises:** `ValueError` if no job fits the space.
    """
    found, damaged = [], []
    for trial in study.get_trials(deepcopy=False):
        if SUPERSEDED in trial.user_attrs:
            continue
        try:
            stored = _job(trial, names)
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


def _resume(schedule: Scheduler, stored: dict[str, Any]) -> None:
    """Make a job of a known configuration pending, unless it has its result."""
    candidate = schedule.candidates[stored["number"]]
    schedule.take_up(candidate.number, stored["level"], candidate.config, candidate.note)


def _superseded(study: Study, names: Names, number: int, stored: dict[str, Any]) -> bool:
    """Whether another process was faster with the same job, or proposed for the same number.

    The trial with the smaller number wins; it exists before this one does, so all processes agree.
    """
    for trial, other in _jobs(study, names):
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


def _work(
    study: Study,
    objective: Callable[[Trial, Job], Any],
    schedule: Scheduler,
    trial: Trial,
    stored: dict[str, Any],
) -> None:
    space = schedule.searcher.space
    job = Job(
        number=stored["number"],
        config=suggest(trial, space),
        resource=stored["resource"],
        resume_from=stored["resume_from"],
        level=stored["level"],
    )
    value, problem = None, "the value is not a finite number"
    try:
        returned = objective(trial, job)
        if isinstance(returned, Report):
            keep_report(trial, returned)
            returned = returned.value
        value = None if returned is None else float(returned)
    except Exception as error:
        warnings.warn(f"configuration {job.number} failed: {error!r}", stacklevel=3)
        problem = repr(error)
    with contextlib.suppress(UpdateFinishedTrialError):
        # Another process may have taken this one for dead; then the job is done again there.
        if value is None or not math.isfinite(value):
            trial.set_user_attr(FAILED, problem)
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return
        step = int(job.resource) if float(job.resource).is_integer() else job.level
        trial.report(value, step)
        if job.level == schedule.top:
            study.tell(trial, value, skip_if_finished=True)
        else:
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)


class RungPruner(BasePruner):
    """The stopping variant of ASHA as a pruner, for objectives that report every step.

    A trial that reaches a rung goes on if it is among the best `1/eta` of all that have reached it
    so far; the first `eta - 1` always do. NaN is pruned. The rungs are exact, and nothing is kept
    but the study.

    **Arguments:**

    - `max_resource`: the last step of a full trial.
    - `min_resource`: the first rung. Default 1.
    - `eta`: the reduction factor. Default 3.
    """

    def __init__(self, max_resource: int, *, min_resource: int = 1, eta: int = 3) -> None:
        self._eta = integer("eta", eta, 2)
        low = integer("min_resource", min_resource, 1)
        high = integer("max_resource", max_resource, low)
        rungs = rung_resources(Fraction(low), Fraction(high), self._eta, True)
        self._rungs = [int(r) for r in rungs]

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial ends here."""
        step = trial.last_step
        if step is None:
            return False
        if math.isnan(trial.intermediate_values[step]):
            return True
        before = max((s for s in trial.intermediate_values if s < step), default=-math.inf)
        reached = bisect_right(self._rungs, step)
        if reached == bisect_right(self._rungs, before) or reached == len(self._rungs):
            return False
        rung = self._rungs[reached - 1]
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        ranked = []
        for other in study.get_trials(deepcopy=False):
            found = trial if other.number == trial.number else other
            steps = [s for s in found.intermediate_values if s >= rung]
            if steps and not math.isnan(value := found.intermediate_values[min(steps)]):
                ranked.append((sign * value, found.number))
        ranked.sort()
        place = [number for _, number in ranked].index(trial.number)
        return len(ranked) >= self._eta and place >= len(ranked) // self._eta
