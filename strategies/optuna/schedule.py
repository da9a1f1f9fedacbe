"""Schedulers on Optuna: a loop that asks and tells, and a pruner.

A pruner of Optuna can end a trial, and nothing else: no pausing, no promotion. So Hyperband, its
iterative deepening and ASHA run as a loop of jobs. Each job is a trial of its own, with the same
parameters at every rung: those at the maximum resource are complete, those at lower rungs pruned.
Everything is in the study; a loop that is started again continues.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from strategies.observation import Report
from strategies.optuna.spaces import Names
from strategies.optuna.trials import REPORT, read_attribute, report_of, suggest, write_attribute
from strategies.schedulers import Job, Scheduler
from strategies.schedulers.base import rung_resources

#: The user attribute of a trial that says which job it is.
JOB = "hypergrad:job"
#: The user attribute of a trial whose failure is a result, not an interruption.
FAILED = "hypergrad:failed"


def run_schedule(
    study: Any,
    objective: Callable[[Any, Job], Any],
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
      checkpoints under `job.number`, or as artifacts of the trial: the number of the trial that
      trained the configuration before is `trial.user_attrs["hypergrad:job"]["continues"]`.
    - `schedule`: a new scheduler, or one that has worked on this study; what the study knows is
      taken from the study.
    - `jobs`: stop after so many jobs of this call.
    - `alone`: no other process works on the study, so trials that are running were interrupted;
      their jobs are done again. With `False` they are left alone, and this loop returns when all
      that is left to do waits for them.

    **Returns:** The scheduler. Its `incumbent` counts results at the maximum resource only;
    after `deepen` that is not the study's best trial.
    """
    names = Names(schedule.searcher.space)
    maximise = study.direction == StudyDirection.MAXIMIZE
    seen: set[int] = set()
    last: dict[int, int] = {}

    def synchronise() -> None:
        """Bring the scheduler up to the study, in the order in which trials finished."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number not in seen]
        finished = [t for t in trials if t.state.is_finished()]
        finished.sort(key=lambda t: (t.datetime_complete, t.number))
        for trial in [*finished, *(t for t in trials if not t.state.is_finished())]:
            stored = read_attribute(JOB, trial.user_attrs)
            if stored is None:
                continue
            number = stored["number"]
            config = names.space.from_json(stored["config"])
            schedule.take_up(number, stored["level"], config, stored["note"])
            if not trial.state.is_finished():
                continue
            seen.add(trial.number)
            if trial.state == TrialState.FAIL and FAILED not in trial.user_attrs:
                schedule.forget(number)
                continue
            last[number] = trial.number
            schedule.tell(number, report_of(trial), maximise=maximise)

    if alone:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if read_attribute(JOB, trial.user_attrs) is not None:
                study.tell(trial.number, state=TrialState.FAIL)
    done = 0
    while jobs is None or done < jobs:
        synchronise()
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            job = schedule.ask()
            if job is None:
                break
            _enqueue(study, schedule, names, job, last.get(job.number))
        trial = study.ask()
        stored = read_attribute(JOB, trial.user_attrs)
        if stored is None:
            study.tell(trial, state=TrialState.FAIL)
            raise ValueError(
                "the study has an enqueued trial that is no job of a scheduler; enqueue points as "
                "the searcher's `first`"
            )
        _work(study, objective, schedule, trial, stored)
        done += 1
    synchronise()
    return schedule


def _enqueue(study: Any, schedule: Scheduler, names: Names, job: Job, last: int | None) -> None:
    attributes: dict[str, Any] = {}
    write_attribute(
        {
            "number": job.number,
            "level": job.level,
            "resource": job.resource,
            "resume_from": job.resume_from,
            "continues": last,
            "config": names.space.to_json(job.config),
            "note": dict(schedule.candidates[job.number].note),
        },
        JOB,
        attributes.__setitem__,
    )
    study.enqueue_trial(names.to_params(job.config), user_attrs=attributes)


def _work(
    study: Any,
    objective: Callable[[Any, Job], Any],
    schedule: Scheduler,
    trial: Any,
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
            write_attribute(returned.to_json(), REPORT, trial.set_user_attr)
            returned = returned.value
        value = None if returned is None else float(returned)
    except Exception as error:
        warnings.warn(f"configuration {job.number} failed: {error!r}", stacklevel=3)
        problem = repr(error)
    if value is None or not math.isfinite(value):
        trial.set_user_attr(FAILED, problem)
        study.tell(trial, state=TrialState.FAIL)
        return
    step = int(job.resource) if float(job.resource).is_integer() else job.level
    trial.report(value, step)
    if job.level == schedule.top:
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState.PRUNED)


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
        if eta < 2 or int(eta) != eta:
            raise ValueError(f"eta must be an integer of at least 2, got {eta!r}.")
        if not 1 <= min_resource <= max_resource:
            raise ValueError(
                f"expected 1 <= min_resource <= max_resource, got {min_resource} and {max_resource}"
            )
        low, high = Fraction(min_resource), Fraction(max_resource)
        self._rungs = [int(r) for r in rung_resources(low, high, int(eta), True)]
        self._eta = int(eta)

    def prune(self, study: Any, trial: FrozenTrial) -> bool:
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
