"""Who is in which lane of a program."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from strategies.population.checkpoint import Stored
from strategies.population.program import Program
from strategies.population.rows import to_host
from strategies.schedulers.base import Job
from strategies.space import Point


@dataclass(frozen=True)
class Member:
    """A configuration in training.

    - `number`, `point`: its number, and its configuration.
    - `age`: the steps that it was trained for.
    - `until`: the steps that its job asks for; `age` if it has none.
    - `job`: what it works on; `None` for one that waits in its lane.
    """

    number: int
    point: Point
    age: int
    until: int
    job: Job | None = None


@dataclass(frozen=True)
class Arrival:
    """A member that has reached the end of its job."""

    job: Job
    age: int
    value: float
    metrics: Any
    lane: int


class Lanes:
    """The members of one program, and those that had to leave their lane for a while.

    **Arguments:**

    - `program`: what trains them.
    - `seed`: of their keys.
    - `settled`: whether a member will never be trained again, so that nobody keeps its state.
    """

    def __init__(self, program: Program, seed: int, settled: Callable[[int], bool]) -> None:
        self.program, self._seed, self._settled = program, seed, settled
        self.clear()

    def clear(self) -> None:
        """Nobody is here, as at the beginning, or after an advance that has failed."""
        self.members: list[Member | None] = [None] * self.program.lanes
        self.waiting: list[tuple[Job, Point, int]] = []
        self.stored: dict[int, Stored] = {}
        self.states: Any = None
        #: The number that a member's key comes from, where that is not its own.
        self.drawn_as: dict[int, int] = {}

    @property
    def running(self) -> int:
        """Members that have a job."""
        return sum(m is not None and m.job is not None for m in self.members)

    def fill(self) -> None:
        """Give lanes to the jobs that wait, as far as there are free ones."""
        fresh: list[int] = []
        resumed: list[tuple[int, Stored]] = []
        while self.waiting:
            job, point, until = self.waiting[0]
            lane = self._lane_of(job.number)
            if lane is None:
                return self._settle(fresh, resumed)
            del self.waiting[0]
            present = self.members[lane]
            if present is not None and present.number == job.number and present.age <= until:
                self.members[lane] = replace(present, point=point, until=until, job=job)
                continue
            if present is not None and not self._settled(present.number):
                # In its lane until now, wanted later; evicted before its lane is written.
                row = self.program.take(self.states, lane)
                self.stored[present.number] = Stored(present.age, to_host(row))
            kept = self.stored.pop(job.number, None)
            if kept is not None and kept.age <= until:
                resumed.append((lane, kept))
            else:
                kept = None
                fresh.append(lane)
            self.members[lane] = Member(job.number, point, kept.age if kept else 0, until, job)
        return self._settle(fresh, resumed)

    def _lane_of(self, number: int) -> int | None:
        """The lane of a member, or the one that is missed least."""

        def loss(lane: int) -> int:
            member = self.members[lane]
            if member is None:
                return 1
            if member.number == number:
                return 0
            return 2 if self._settled(member.number) else 3

        free = [i for i, m in enumerate(self.members) if m is None or m.job is None]
        return min(free, key=loss, default=None)

    def _settle(self, fresh: list[int], resumed: list[tuple[int, Stored]]) -> None:
        """Initial states in the lanes `fresh`, kept ones where members are back."""
        program = self.program
        if fresh or (resumed and self.states is None):
            first = program.begin(self.config(), self.keys())
            where = np.isin(np.arange(program.lanes), fresh)
            self.states = first if self.states is None else program.merge(self.states, first, where)
        for lane, kept in resumed:
            self.states = program.put(self.states, lane, kept.leaves)

    def config(self) -> dict[str, Any]:
        """The configurations of all lanes; an empty one has that of any other."""
        someone = next(m for m in self.members if m is not None)
        return self.program.arrays([(m or someone).point for m in self.members])

    def keys(self) -> jax.Array:
        """The keys of all lanes, those of number 0 in empty ones."""
        numbers = [0 if m is None else self.drawn_as.get(m.number, m.number) for m in self.members]
        return self.program.keys(self._seed, np.array(numbers))

    def advance(self) -> list[Arrival]:
        """Train until the first member arrives: no lane runs for nothing."""
        ages = np.array([0 if m is None else m.age for m in self.members])
        until = np.array([0 if m is None else m.until for m in self.members])
        busy = [i for i, m in enumerate(self.members) if m is not None and m.job is not None]
        steps = int(min(until[busy] - ages[busy]))
        self.states, values, metrics, _ = self.program.advance(
            self.states, self.config(), self.keys(), ages, until, steps
        )
        values, metrics = jax.device_get((values, metrics))
        arrived = []
        for lane in busy:
            member = self.members[lane]
            assert member is not None
            assert member.job is not None
            age = member.age + steps
            self.members[lane] = replace(member, age=age)
            if age == member.until:
                self.members[lane] = replace(member, age=age, job=None)
                seen = jax.tree.map(
                    lambda leaf, lane=lane: (
                        leaf[lane].item() if leaf[lane].ndim == 0 else leaf[lane].tolist()
                    ),
                    metrics,
                )
                arrived.append(Arrival(member.job, age, float(values[lane]), seen, lane))
        return arrived

    def knows(self, number: int, age: int) -> bool:
        """Whether a member's state at an age is here."""
        kept = self.stored.get(number)
        return (kept is not None and kept.age == age) or any(
            m is not None and m.number == number and m.age == age for m in self.members
        )

    def state(self, number: int) -> Stored:
        """The state of a member, on the host."""
        for lane, member in enumerate(self.members):
            if member is not None and member.number == number:
                return Stored(member.age, to_host(self.program.take(self.states, lane)))
        return self.stored[number]

    def replace(self, number: int, kept: Stored | None) -> None:
        """Give a member that does not work another state, or none: it begins anew."""
        for lane, member in enumerate(self.members):
            if member is not None and member.number == number:
                self.leave(lane)
        self.stored.pop(number, None)
        if kept is not None:
            self.stored[number] = kept

    def leave(self, lane: int) -> None:
        """The member of a lane has failed: the lane is free."""
        self.members[lane] = None

    def everyone(self) -> dict[int, Stored]:
        """The states of all members that may be trained again, on the host."""
        found = {n: kept for n, kept in self.stored.items() if not self._settled(n)}
        if self.states is not None:
            leaves = to_host(self.states)
            for lane, member in enumerate(self.members):
                if member is not None and not self._settled(member.number):
                    found[member.number] = Stored(member.age, [leaf[lane] for leaf in leaves])
        return found
