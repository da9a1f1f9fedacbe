"""The loop of a population that works on jobs: trials of one length, or a scheduler's rungs."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from strategies.observation import Observation, Report
from strategies.population.buckets import key_of
from strategies.population.checkpoint import Stored
from strategies.population.lanes import Arrival, Lanes
from strategies.population.program import Program
from strategies.population.rows import to_host
from strategies.population.run import Keeping, PopulationResult, Run
from strategies.population.work import Work
from strategies.schedulers.base import Job
from strategies.space import SearchSpace

Key = tuple[Any, ...]
_BEST = "best"


class Search(Run):
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
        super().__init__(seed, keeping)
        self._space, self._buckets, self._jobs, self._size = space, buckets, work, size
        self._lanes = {k: Lanes(program, seed, work.settled) for k, program in programs.items()}
        self._steps = 0

    def run(self) -> PopulationResult:
        """Work until there is nothing left to do, or Ctrl-C."""
        reason = self._work()
        found = self._found(self._jobs.best(), self._jobs.history(), self._jobs.ledger)
        return PopulationResult(**found, stopped=reason)

    def _loop(self, begun: list[Job]) -> None:
        while not self._stopped:
            self._ask(begun)
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
            told = [self._record(lanes, arrival) for arrival in arrived]
            self._save(last=False)
            for arrival, observation in zip(arrived, told, strict=True):
                info = {"steps": arrival.age, "metrics": arrival.metrics}
                self._tell(observation, share, info)
            best = self._jobs.best()
            alive = sum(m is not None for lanes in self._lanes.values() for m in lanes.members)
            self._show(alive, self._steps, None if best is None else best.value, self._jobs.left())
        self._save(last=True)

    def _in_work(self) -> int:
        return sum(lanes.running + len(lanes.waiting) for lanes in self._lanes.values())

    def _ask(self, again: list[Job]) -> None:
        while (running := self._in_work()) < self._size:
            job = again.pop(0) if again else self._jobs.ask(running)
            if job is None:
                return
            point = self._space.point(job.config)
            lanes = self._lanes[key_of(point, self._buckets)]
            lanes.waiting.append((job, point, int(job.resource)))

    def _record(self, lanes: Lanes, arrival: Arrival) -> Observation:
        report = Report(arrival.value, cost=float(arrival.age), resource=float(arrival.age))
        told = self._jobs.tell(arrival.job, report)
        if told.status != "complete":
            lanes.leave(arrival.lane)
        best = self._jobs.best()
        if best is not None and best.number == told.number and best.value == told.value:
            found = (best.value or 0.0, arrival.job.number)
            if found != self._best:
                self._best = found
                self._best_state = lanes.program.take(lanes.states, arrival.lane)
        return told

    # State

    def _keep(self, path: str | os.PathLike[str]) -> None:
        self._jobs.save(path)

    def _members(self) -> tuple[dict[str, Stored], dict[str, Any]]:
        stored = {
            str(number): kept
            for lanes in self._lanes.values()
            for number, kept in lanes.everyone().items()
        }
        if self._best is None:
            return stored, {}
        stored[_BEST] = Stored(self._best[1], to_host(self._best_state))
        return stored, {_BEST: list(self._best)}

    def _restore(self) -> list[Job]:
        """Take over what an earlier run has left; what that was working on."""
        if self._keeping.state_path is not None:
            self._jobs.restore(self._keeping.state_path)
        if self._keeping.members_path is None:
            return self._jobs.again()
        stored, note = self._stored_members()
        best, kept = self._jobs.best(), stored.pop(_BEST, None)
        points = {o.number: o.config for o in self._jobs.history()}
        again = self._jobs.again()
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
