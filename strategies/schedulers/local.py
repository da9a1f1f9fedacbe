"""The embedded engine for schedulers: jobs in this process, with no server and no cluster."""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from strategies.arguments import asks_to_stop, functions, instance, integer, positive
from strategies.local.executors import work
from strategies.local.outcome import Outcome, evaluate
from strategies.local.running import Lost
from strategies.observation import Report
from strategies.schedulers.base import Job, Scheduler
from strategies.space.point import copied
from strategies.state import exclusive_lock, save_if_there_is_space, state_exists
from strategies.stopping import ASKED, INTERRUPTED, Stop, Watch

Objective = Callable[[Job], Any]
Kind = TypeVar("Kind", bound=Scheduler)


def run(
    objective: Objective,
    scheduler: Kind,
    *,
    jobs: int | None = None,
    budget: float | None = None,
    stop: Stop | None = None,
    workers: int = 1,
    timeout: float | None = None,
    state_path: str | os.PathLike[str] | None = None,
    callbacks: Iterable[Callable[[Job, Report], bool | None]] = (),
) -> Kind:
    """Work on a scheduler's jobs until it has finished.

    **Arguments:**

    - `objective`: takes a `Job` and returns the value at `job.resource`, minimised, or a `Report`.
      It may keep checkpoints under `job.number` and train only from `job.resume_from` on. An
      exception is a failure of that configuration, with a warning, and the run goes on.
    - `scheduler`: says what is to be done, and learns what came of it.
    - `jobs`: stop after so many jobs in all, at least 1, those before a restore included.
    - `budget`: start no job once this much resource is spent (`Scheduler.spent_resumed`) or will
      be by the jobs that run.
    - `stop`: what else ends the run before: a `Stop` by time, cost, patience or expected gain; the
      last two look at the results at the highest rung that has any. Why it ended is
      `Scheduler.stopped`.
    - `workers`: threads. With 1 the order of jobs is reproducible; the decisions always are.
    - `timeout`: seconds after which a job is given up: a failure. Its thread is left alone.
      Default: never.
    - `state_path`: file for the state, written after every job. If it exists and the scheduler is
      new, the run resumes there: results are kept, and what was being worked on is done again.
    - `callbacks`: called with a job and its report after each, in this thread. One that returns
      `True` ends the run; what is running then is still recorded.

    Ctrl-C ends the run: what has finished is known, what was running is pending, and is done again
    by a run that resumes.

    **Returns:** The scheduler.

    **Raises:** `ValueError` if a returned gradient or tuned configuration does not fit the space,
    as in `strategies.local.minimize`; if there is neither `jobs` nor `budget` for a scheduler
    without end; or if another run works on `state_path`.
    """
    instance("scheduler", scheduler, Scheduler)
    functions("objective", [objective])
    workers = integer("workers", workers, 1)
    jobs = None if jobs is None else integer("jobs", jobs, 1)
    budget = None if budget is None else positive("budget", budget)
    timeout = None if timeout is None else positive("timeout", timeout)
    if stop is not None and not isinstance(stop, Stop):
        raise ValueError(f"'stop': expected a Stop, received {stop!r:.80}")
    if jobs is None and budget is None and stop is None and scheduler.endless:
        raise ValueError("'jobs', 'budget': expected one of them, as this scheduler has no end")
    watch = None if stop is None else Watch(stop, scheduler.searcher.space)
    callbacks = functions("callbacks", callbacks)
    with exclusive_lock(state_path):
        return _run(
            objective, scheduler, jobs, budget, watch, workers, timeout, state_path, callbacks
        )


def _run(
    objective: Objective,
    scheduler: Kind,
    jobs: int | None,
    budget: float | None,
    watch: Watch | None,
    workers: int,
    timeout: float | None,
    state_path: str | os.PathLike[str] | None,
    callbacks: Iterable[Callable[[Job, Report], bool | None]],
) -> Kind:
    # A scheduler that has results is ahead of its file: it may have been deepened since.
    if state_path is not None and not scheduler.candidates and state_exists(state_path):
        scheduler.restore(state_path)
    stops: list[Any] = []
    again = scheduler.pending()

    def more(running: int) -> Job | None:
        if stops or (jobs is not None and scheduler.done + running >= jobs):
            return None
        if watch is not None and watch.over(scheduler.results(), scheduler.costs()):
            return None
        if again:
            return again.pop(0)
        promised = sum(job.resource - job.resume_from for job in scheduler.pending())
        if budget is not None and scheduler.spent_resumed + promised >= budget:
            return None
        return scheduler.ask()

    def record(job: Job, found: Outcome | Lost) -> None:
        outcome = Outcome.of(found)
        made = outcome.report
        scheduler.tell(job.number, made)
        if state_path is not None:
            save_if_there_is_space(scheduler.save, state_path)
        if outcome.error is not None:
            warnings.warn(f"configuration {job.number} failed: {outcome.error!r}", stacklevel=3)
        stops.extend(callback for callback in callbacks if asks_to_stop(callback(job, made)))

    def call(job: Job) -> tuple[Any, ...]:
        return evaluate, objective, replace(job, config=copied(job.config))

    interrupted = False
    try:
        work(more, call, record, workers, timeout, set())
    except KeyboardInterrupt:
        interrupted = True
    scheduler.stopped = None if watch is None else watch.reason
    if interrupted or stops:
        scheduler.stopped = INTERRUPTED if interrupted else ASKED
    return scheduler
