"""The loop of a population that works on jobs: trials of one length, or a scheduler's rungs."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.arguments import asks_to_stop
from strategies.local.results import Result, Trial
from strategies.observation import Observation, Report
from strategies.population import checkpoint
from strategies.population.buckets import key_of
from strategies.population.checkpoint import Stored
from strategies.population.lanes import Arrival, Lanes
from strategies.population.program import Program
from strategies.population.progress import Progress
from strategies.population.rows import to_host
from strategies.population.work import Work
from strategies.schedulers.base import Job
from strategies.space import SearchSpace
from strategies.space.point import copied
from strategies.state import save_if_there_is_space

Key = tuple[Any, ...]
_BEST = "best"
#: Why a run ended before it was through.
INTERRUPTED, ASKED = "it was interrupted", "a callback asked for it"


@dataclass(frozen=True)
class PopulationResult(Result):
    """What a population found: a `Result`, and the trained state.

    - `best_state`: the state of the member with `best_value`, as it was then. `None` if there is
      none, or if it was found before a restart that no checkpoint has seen.
    """

    best_state: Any


@dataclass(frozen=True)
class Keeping:
    """What a run writes, and whom it tells.

    - `state_path`: file for results.
    - `members_path`: file for the members' states.
    - `checkpoint_seconds`: the least time between two writings of states.
    - `callbacks`: called with each `Trial`; one that returns `True` ends the run.
    - `progress`: called with a `Progress` at each boundary.
    """

    state_path: str | os.PathLike[str] | None
    members_path: str | None
    checkpoint_seconds: float
    callbacks: tuple[Callable[[Trial], bool | None], ...]
    progress: Callable[[Progress], None] | None

    def tell(self, trial: Trial) -> bool:
        """Call the callbacks; whether one asks to stop."""
        return any([asks_to_stop(callback(trial)) for callback in self.callbacks])


class Search:
    """A run on jobs.

    **Arguments:**

    - `programs`: one for each bucket.
    - `work`: the jobs.
    - `seed`: of the members' keys.
    - `size`: how many members there are in all buckets together.
    """

    def __init__(
        self,
        space: SearchSpace,
        programs: Mapping[Key, Program],
        buckets: tuple[str, ...],
        work: Work,
        seed: int,
        size: int,
        keeping: Keeping,
    ) -> None:
        self._space, self._buckets, self._work, self._size = space, buckets, work, size
        self._seed, self._keeping = seed, keeping
        self._lanes = {k: Lanes(program, seed, work.settled) for k, program in programs.items()}
        self._trials: list[Trial] = []
        self._best: tuple[float, int] | None = None
        self._best_state: Any = None
        self._steps = 0
        self._stopped = False
        self._reason: str | None = None

    def run(self) -> PopulationResult:
        """Work until there is nothing left to do, or Ctrl-C."""
        self._began = self._written = time.monotonic()
        again = self._restore()
        try:
            self._loop(again)
        except KeyboardInterrupt:
            # The members' states may be those of half a step: the file of before keeps what it has.
            self._reason = INTERRUPTED
            if self._keeping.state_path is not None:
                save_if_there_is_space(self._work.save, self._keeping.state_path)
        best = self._work.best()
        return PopulationResult(
            best_config=None if best is None else dict(best.config),
            best_value=None if best is None else best.value,
            history=self._work.history(),
            trials=self._trials,
            ledger=self._work.ledger,
            best_state=self._best_state,
            stopped=self._reason,
        )

    def _loop(self, again: list[Job]) -> None:
        while not self._stopped:
            self._ask(again)
            for lanes in self._lanes.values():
                lanes.fill()
            # The fullest first: the others may fill up until it is their turn.
            lanes = max(self._lanes.values(), key=lambda one: one.running)
            if not lanes.running:
                break
            started, busy = time.monotonic(), lanes.running
            ages = sum(m.age for m in lanes.members if m is not None)
            arrived = lanes.advance()
            self._steps += sum(m.age for m in lanes.members if m is not None) - ages
            share = (time.monotonic() - started) / busy
            arrived.sort(key=lambda one: one.job.number)
            told = [self._tell(lanes, arrival) for arrival in arrived]
            self._save()
            for arrival, observation in zip(arrived, told, strict=True):
                self._announce(arrival, observation, share)
            self._show()
        if self._stopped:
            self._reason = ASKED
        self._save(last=True)

    def _in_work(self) -> int:
        return sum(lanes.running + len(lanes.waiting) for lanes in self._lanes.values())

    def _ask(self, again: list[Job]) -> None:
        while (running := self._in_work()) < self._size:
            job = again.pop(0) if again else self._work.ask(running)
            if job is None:
                return
            point = self._space.point(job.config)
            lanes = self._lanes[key_of(point, self._buckets)]
            lanes.waiting.append((job, point, int(job.resource)))

    def _tell(self, lanes: Lanes, arrival: Arrival) -> Observation:
        report = Report(arrival.value, cost=float(arrival.age), resource=float(arrival.age))
        told = self._work.tell(arrival.job, report)
        if told.status != "complete":
            lanes.leave(arrival.lane)
        best = self._work.best()
        if best is not None and best.number == told.number and best.value == told.value:
            found = (best.value or 0.0, arrival.job.number)
            if found != self._best:
                self._best = found
                self._best_state = lanes.program.take(lanes.states, arrival.lane)
        return told

    def _announce(self, arrival: Arrival, told: Observation, share: float) -> None:
        trial = Trial(
            number=arrival.job.number,
            config=copied(dict(told.config)),
            value=told.value,
            status=told.status,
            seconds=share,
            note=told.note,
            info={"steps": arrival.age, "metrics": arrival.metrics},
        )
        self._trials.append(trial)
        self._stopped |= self._keeping.tell(trial)

    def _show(self) -> None:
        if self._keeping.progress is None:
            return
        seconds = time.monotonic() - self._began
        left, best = self._work.left(), self._work.best()
        self._keeping.progress(
            Progress(
                alive=sum(m is not None for lanes in self._lanes.values() for m in lanes.members),
                trials=len(self._trials),
                steps=self._steps,
                best=None if best is None else best.value,
                seconds=seconds,
                left=None if left is None else left * seconds / max(self._steps, 1),
            )
        )

    # State

    def _save(self, *, last: bool = False) -> None:
        path, members = self._keeping.state_path, self._keeping.members_path
        if path is not None:
            save_if_there_is_space(self._work.save, path)
        if members is None:
            return
        now = time.monotonic()
        if not last and now - self._written < self._keeping.checkpoint_seconds:
            return
        self._written = now
        stored = {
            str(number): kept
            for lanes in self._lanes.values()
            for number, kept in lanes.everyone().items()
        }
        note: dict[str, Any] = {"seed": self._seed}
        if self._best is not None:
            number = self._best[1]
            stored[_BEST] = Stored(number, to_host(self._best_state))
            note[_BEST] = list(self._best)
        checkpoint.write(members, stored, note)

    def _restore(self) -> list[Job]:
        """Take over what an earlier run has left; what that was working on."""
        path, members = self._keeping.state_path, self._keeping.members_path
        if path is not None:
            self._work.restore(path)
        if members is None:
            return self._work.again()
        stored, note = checkpoint.read(members)
        checkpoint.expect_seed(members, note, self._seed)
        best, kept = self._work.best(), stored.pop(_BEST, None)
        points = {o.number: o.config for o in self._work.history()}
        again = self._work.again()
        points.update({job.number: job.config for job in again})
        for name, member in stored.items():
            if int(name) in points:
                key = key_of(self._space.point(points[int(name)]), self._buckets)
                self._lanes[key].stored[int(name)] = member
        if best is not None and kept is not None and note[_BEST] == [best.value, best.number]:
            assert best.number is not None
            lanes = self._lanes[key_of(self._space.point(best.config), self._buckets)]
            point = self._space.point(best.config)
            program = lanes.program
            someone = program.begin(
                program.arrays([point] * program.lanes), program.keys(0, np.zeros(program.lanes))
            )
            self._best = (best.value or 0.0, best.number)
            self._best_state = program.row(kept.leaves, someone)
        return again


__all__ = ["ASKED", "INTERRUPTED", "Keeping", "PopulationResult", "Search"]
