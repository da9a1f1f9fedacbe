"""Schedulers on Optuna: a loop that asks and tells, and a pruner.

A pruner of Optuna can end a trial, and nothing else: no pausing, no promotion. So Hyperband, its
iterative deepening and ASHA run as a loop of jobs, each a trial of its own (see `StudyJobs`). A
loop that is started again continues.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial

from strategies.arguments import functions, instance, integer, switch
from strategies.observation import Report
from strategies.optuna.jobs import StudyJobs
from strategies.optuna.trials import keep_report
from strategies.schedulers import Job, Scheduler
from strategies.schedulers.job import rung_resources
from strategies.stopping import INTERRUPTED, Stop, Watch


def run_schedule(
    study: Study,
    objective: Callable[[Trial, Job], Any],
    schedule: Scheduler,
    *,
    jobs: int | None = None,
    stop: Stop | None = None,
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
    - `jobs`: stop after so many jobs of this call. With 0 the schedule learns what the study knows.
    - `stop`: what else ends this call: a `Stop` by time, cost, patience or expected gain; the last
      two look at the results at the highest rung that has any. Why it ended is
      `Scheduler.stopped`.
    - `alone`: no other process works on the study, so trials that are running were interrupted;
      their jobs are done again. With `False` several processes share the work. Jobs of one that
      died are done again if the storage has heartbeats (`RDBStorage(heartbeat_interval=...)`), and
      otherwise by a later call with `alone=True`. The loop returns when all that is left to do
      waits for others.

    Ctrl-C ends the call: what has finished is known, and a later call does again what was running.

    **Returns:** The scheduler. Its `incumbent` counts results at the maximum resource only;
    after `deepen` that is not the study's best trial.
    """
    instance("study", study, Study)
    instance("schedule", schedule, Scheduler)
    functions("objective", [objective])
    alone = switch("alone", alone)
    jobs = None if jobs is None else integer("jobs", jobs, 0)
    if stop is not None and not isinstance(stop, Stop):
        raise ValueError(f"'stop': expected a Stop, received {stop!r:.80}")
    watch = None if stop is None else Watch(stop, schedule.searcher.space)
    work = StudyJobs(study, schedule, alone=alone)
    done, stopped = 0, None
    try:
        while jobs is None or done < jobs:
            if watch is not None:
                # What the study knows counts, also in a call that goes on with it.
                work.synchronise()
                if watch.over(schedule.results(), schedule.costs()):
                    stopped = watch.reason
                    break
            found = work.ask()
            if found is None:
                break
            trial, job = found
            with get_heartbeat_thread(trial._trial_id, study._storage):
                work.tell(trial, job, *_evaluate(objective, trial, job))
            done += 1
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    work.synchronise()
    schedule.stopped = stopped
    return schedule


def _evaluate(
    objective: Callable[[Trial, Job], Any], trial: Trial, job: Job
) -> tuple[float | None, str]:
    """What the objective returns, if that is a number, and what is wrong otherwise."""
    try:
        returned = objective(trial, job)
        if isinstance(returned, Report):
            keep_report(trial, returned)
            returned = returned.value
        value = None if returned is None else float(returned)
    except (KeyboardInterrupt, StorageInternalError):
        raise
    except BaseException as error:  # an exit, a cancellation, a panic of a library in Rust
        warnings.warn(f"configuration {job.number} failed: {error!r}", stacklevel=3)
        return None, repr(error)
    return value, "the value is not a finite number"


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
