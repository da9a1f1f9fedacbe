"""The embedded engine for schedulers: jobs in this process, with no server and no cluster."""

import os
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from strategies.observation import Report, report
from strategies.schedulers.base import Job, Scheduler

Objective = Callable[[Job], Any]


def run(
    objective: Objective,
    scheduler: Scheduler,
    *,
    jobs: int | None = None,
    budget: float | None = None,
    workers: int = 1,
    state_path: str | os.PathLike[str] | None = None,
    callbacks: Iterable[Callable[[Job, Report], None]] = (),
) -> Scheduler:
    """Work on a scheduler's jobs until it has finished.

    **Arguments:**

    - `objective`: takes a `Job` and returns the value at `job.resource`, minimised, or a `Report`.
      It may keep checkpoints under `job.number` and train only from `job.resume_from` on. An
      exception is a failure of that configuration, with a warning, and the run goes on.
    - `scheduler`: says what is to be done, and learns what came of it.
    - `jobs`: stop after so many jobs in all, those before a restore included.
    - `budget`: start no job once this much resource is spent (`Scheduler.spent_resumed`).
    - `workers`: threads. With 1 the order of jobs is reproducible; the decisions always are.
    - `state_path`: file for the state, written after every job. If it exists and the scheduler is
      new, the run resumes there: results are kept, and what was being worked on is done again.
    - `callbacks`: called with a job and its report after each, in this thread.

    **Returns:** The scheduler.

    **Raises:** `ValueError` if there is neither `jobs` nor `budget` for a scheduler without end.
    """
    endless = getattr(scheduler, "iterations", 1) is None or (
        getattr(scheduler, "configurations", 1) is None
    )
    if jobs is None and budget is None and endless:
        raise ValueError("'jobs', 'budget': expected one of them, as this scheduler has no end")
    # A scheduler that has results is ahead of its file: it may have been deepened since.
    if (
        state_path is not None
        and not scheduler.candidates
        and (os.path.exists(state_path) or os.path.exists(os.fspath(state_path) + ".backup"))
    ):
        scheduler.restore(state_path)
    callbacks = tuple(callbacks)
    again = scheduler.pending()

    def more(running: int) -> Job | None:
        if again:
            return again.pop(0)
        done = sum(len(c.results) for c in scheduler.candidates.values())
        if jobs is not None and done + running >= jobs:
            return None
        if budget is not None and scheduler.spent_resumed >= budget:
            return None
        return scheduler.ask()

    def record(job: Job, given: Report) -> None:
        scheduler.tell(job.number, given)
        if state_path is not None:
            scheduler.save(state_path)
        for callback in callbacks:
            callback(job, given)

    if workers == 1:
        while (job := more(0)) is not None:
            record(job, _evaluate(objective, job))
        return scheduler
    running: dict[Future[Report], Job] = {}
    with ThreadPoolExecutor(workers) as executor:
        while True:
            while len(running) < workers and (job := more(len(running))) is not None:
                running[executor.submit(_evaluate, objective, job)] = job
            if not running:
                return scheduler
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: running[f].number):
                record(running.pop(future), future.result())


def _evaluate(objective: Objective, job: Job) -> Report:
    start = time.perf_counter()
    try:
        returned = objective(job)
    except Exception as error:
        warnings.warn(f"configuration {job.number} failed: {error!r}", stacklevel=2)
        returned = Report(None)
    given = returned if isinstance(returned, Report) else report(returned)
    if given.cost is None:
        given = replace(given, cost=time.perf_counter() - start)
    return given
