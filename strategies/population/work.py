"""Where a population's jobs come from: a ledger, whose trials have one length, or a scheduler."""

import os
from dataclasses import replace
from typing import Protocol

from strategies.arguments import integer
from strategies.ledger import Ledger
from strategies.observation import Observation, Report
from strategies.schedulers.base import Job, Scheduler
from strategies.space import Config
from strategies.state import state_exists


class Work(Protocol):
    """Hands out jobs, whose resource is a number of steps, and is told what came of them."""

    ledger: Ledger

    def again(self) -> list[Job]:
        """What a killed run was working on."""

    def ask(self, running: int) -> Job | None:
        """The next job, given how many are being worked on, or `None` if there is none now."""

    def tell(self, job: Job, report: Report) -> Observation:
        """Record what came of a job."""

    def settled(self, number: int) -> bool:
        """Whether a member will never be trained again."""

    def left(self) -> int | None:
        """Steps still to be done by members that have not begun; `None` if nobody knows."""

    def best(self) -> Observation | None:
        """The best result so far."""

    def history(self) -> list[Observation]:
        """All results."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what is known to a file."""

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote, if there is any."""


class Trials:
    """Trials of one length.

    **Arguments:**

    - `ledger`: proposes and records.
    - `trials`: how many in all.
    - `steps`: of each.
    """

    def __init__(self, ledger: Ledger, trials: int, steps: int) -> None:
        self.ledger, self._trials, self._steps = ledger, trials, steps
        self.save = ledger.save
        self._open: set[int] = set()

    def _job(self, number: int, config: Config) -> Job:
        self._open.add(number)
        return Job(number, config, self._steps, 0, 0)

    def again(self) -> list[Job]:
        """See `Work`."""
        return [self._job(one.number, one.config) for one in self.ledger.pending]

    def ask(self, running: int) -> Job | None:
        """See `Work`."""
        if self.ledger.trials + running >= self._trials:
            return None
        suggestion = self.ledger.ask()
        return self._job(suggestion.number, suggestion.config)

    def tell(self, job: Job, report: Report) -> Observation:
        """See `Work`."""
        self._open.discard(job.number)
        return self.ledger.record(self.ledger.intake(job.config, report, number=job.number))

    def settled(self, number: int) -> bool:
        """See `Work`."""
        return number not in self._open

    def left(self) -> int | None:
        """See `Work`."""
        return (self._trials - self.ledger.trials) * self._steps

    def best(self) -> Observation | None:
        """See `Work`."""
        return self.ledger.best

    def history(self) -> list[Observation]:
        """See `Work`."""
        return self.ledger.history

    def restore(self, path: str | os.PathLike[str]) -> None:
        """See `Work`."""
        if state_exists(path):
            self.ledger.restore(path)


class Rungs:
    """The jobs of a scheduler.

    **Arguments:**

    - `scheduler`: decides who is trained how far.
    - `trials`: the most jobs; `None` for all that the scheduler has.
    - `steps`: training steps of one unit of its resource. Default 1.

    **Raises:** `ValueError` for a scheduler that has no end, without `trials`.
    """

    def __init__(self, scheduler: Scheduler, trials: int | None, steps: int | None) -> None:
        if scheduler.endless and trials is None:
            raise ValueError("'trials': expected a number, as this scheduler has no end")
        self._scheduler = scheduler
        self._jobs = None if trials is None else integer("trials", trials, 1)
        self._steps = 1 if steps is None else integer("steps", steps, 1)
        #: The last result of each configuration.
        self.ledger = Ledger(scheduler.searcher)
        self.save = scheduler.save

    def _in_steps(self, job: Job) -> Job:
        steps = round(job.resource * self._steps)
        return replace(job, resource=steps, resume_from=round(job.resume_from * self._steps))

    def again(self) -> list[Job]:
        """See `Work`."""
        return list(map(self._in_steps, self._scheduler.pending()))

    def ask(self, running: int) -> Job | None:
        """See `Work`."""
        if self._jobs is not None and self._scheduler.done + running >= self._jobs:
            return None
        job = self._scheduler.ask()
        return None if job is None else self._in_steps(job)

    def tell(self, job: Job, report: Report) -> Observation:
        """See `Work`."""
        self._scheduler.tell(job.number, report)
        told = self._scheduler.candidates[job.number].results[job.level]
        return self.ledger.record(told)

    def settled(self, number: int) -> bool:
        """See `Work`."""
        return self._scheduler.job(number) is None and self._scheduler.settled(number)

    def left(self) -> int | None:
        """See `Work`."""
        return None

    def best(self) -> Observation | None:
        """See `Work`: of the highest rung that has a result."""
        found = self._scheduler.incumbents
        return found[max(found)] if found else None

    def history(self) -> list[Observation]:
        """See `Work`."""
        return self._scheduler.everything()

    def restore(self, path: str | os.PathLike[str]) -> None:
        """See `Work`; a scheduler that has results is ahead of its file."""
        if not self._scheduler.candidates and state_exists(path):
            self._scheduler.restore(path)
        self._take_over()

    def _take_over(self) -> None:
        """Let the ledger know what the scheduler knows."""
        for candidate in self._scheduler.candidates.values():
            if candidate.results:
                self.ledger.record(candidate.results[max(candidate.results)])
