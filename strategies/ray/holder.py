"""The actor that holds the members of a population for the trials of Ray Tune."""

import asyncio
import os
from typing import Any

from ray import cloudpickle

from strategies.population.buckets import key_of
from strategies.population.checkpoint import Stored
from strategies.population.lanes import Arrival, Lanes
from strategies.population.population import Population
from strategies.schedulers.base import Job
from strategies.space import Config, Point


class Holder:
    """The members of all trials, in one process; an actor of Ray.

    **Arguments:**

    - `pickled`: the `Population`.
    - `patience`: seconds without a new request after which lanes that are free stay empty.
    """

    def __init__(self, pickled: bytes, patience: float) -> None:
        self._population: Population = cloudpickle.loads(pickled)
        self._patience = patience
        self._settled: set[int] = set()
        self._lanes = {
            key: Lanes(program, self._population.seed, self._settled.__contains__)
            for key, program in self._population.programs().items()
        }
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._new: list[tuple[Lanes, Job, Point]] = []
        self._loop: asyncio.Task[None] | None = None
        #: Held while lanes are trained or changed: an advance uses their states up.
        self._lock = asyncio.Lock()

    async def train(
        self,
        label: int,
        number: int,
        config: Config,
        since: int,
        until: int,
        kept: Stored | None = None,
    ) -> tuple[float, Any] | None:
        """Train a member on, and evaluate it; `None` if nobody knows its state at `since`.

        **Arguments:**

        - `label`: of the trial; no other has it.
        - `number`: that the member's keys come from. A trial that has taken over another one's
          configuration may have the same.
        - `config`: of the member.
        - `since`, `until`: its steps before, and after.
        - `kept`: its state at `since`, in place of any that is here.
        """
        point = self._population.space.point(config)
        lanes = self._lanes[key_of(point, self._population.buckets)]
        async with self._lock:
            if since and kept is None and not lanes.knows(label, since):
                return None
            if kept is not None or not since:
                lanes.replace(label, kept)
            lanes.drawn_as[label] = number
            self._settled.discard(label)
            future = asyncio.get_running_loop().create_future()
            self._asked[label] = future
            self._new.append((lanes, Job(label, config, until, since, 0), point))
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._work())
        found: tuple[float, Any] = await future
        return found

    async def state(self, label: int, age: int) -> Stored | None:
        """A member's state, for a checkpoint; `None` if it is not known at this age."""
        async with self._lock:
            for lanes in self._lanes.values():
                if lanes.knows(label, age):
                    return lanes.state(label)
        return None

    def forget(self, label: int) -> None:
        """Nobody asks for a member again without bringing its state."""
        self._settled.add(label)

    def compiled(self) -> tuple[int, int]:
        """How many programs were traced, and the process that holds them."""
        return self._population.traces, os.getpid()

    async def _work(self) -> None:
        while True:
            await self._gather()
            lanes = max(self._lanes.values(), key=lambda one: one.running + len(one.waiting))
            if not (lanes.running or lanes.waiting):
                return
            try:
                async with self._lock:
                    arrived = await asyncio.to_thread(self._advance, lanes)
            except Exception as error:
                lanes.clear()
                for future in self._asked.values():
                    future.set_exception(error)
                self._asked.clear()
                return
            for one in arrived:
                # A trial that was started again has asked twice.
                if one.job.number in self._asked:
                    self._asked.pop(one.job.number).set_result((one.value, one.metrics))

    async def _gather(self) -> None:
        """Wait until the lanes are full, or nobody new comes."""
        while True:
            for lanes, job, point in self._new:
                lanes.waiting.append((job, point, int(job.resource)))
            self._new.clear()
            held = sum(one.running + len(one.waiting) for one in self._lanes.values())
            if held >= self._population.size:
                return
            await asyncio.sleep(self._patience)
            if not self._new:
                return

    @staticmethod
    def _advance(lanes: Lanes) -> list[Arrival]:
        lanes.fill()
        return lanes.advance()
