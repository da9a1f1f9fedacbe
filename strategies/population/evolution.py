"""The loop of population-based training, and what it returns."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from strategies.ledger import Ledger
from strategies.observation import Observation, Report
from strategies.population.checkpoint import Stored
from strategies.population.pbt import PBT
from strategies.population.program import Program
from strategies.population.rows import to_host
from strategies.population.run import Keeping, PopulationResult, Run
from strategies.space import Config, Point
from strategies.state import state_exists


@dataclass(frozen=True)
class Evolution(PopulationResult):
    """What population-based training found.

    - `lineage`: the observations that lead to the best one, from the first round on: the schedule.
    - `interval`: steps of a round.
    """

    lineage: list[Observation]
    interval: int

    def schedule(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """A hyperparameter along the best member's ancestry.

        **Returns:** The steps at which each value begins, shape `(rounds,)`, and the values, shape
        `(rounds, ...)`: `axes.step(*evolution.schedule("rate"), where="post")`.
        """
        space = self.ledger.space
        values = [space.flatten(item.config)[path] for item in self.lineage]
        return np.arange(len(values)) * self.interval, np.array(values)


def evolve(search: PBT, program: Program, seed: int, keeping: Keeping, ledger: Ledger) -> Evolution:
    """Run population-based training; see `Population.run`."""
    return _Evolving(search, program, seed, keeping, ledger).run()


class _Evolving(Run):
    def __init__(
        self, search: PBT, program: Program, seed: int, keeping: Keeping, ledger: Ledger
    ) -> None:
        super().__init__(seed, keeping)
        self._search, self._program, self._ledger = search, program, ledger
        self._size = program.lanes
        self._numbers = np.arange(self._size)
        self._states: Any = None
        self._known: list[list[Observation]] = []

    def run(self) -> Evolution:
        reason = self._work()
        best = self._ledger.best
        return Evolution(
            **self._found(best, self._ledger.history, self._ledger),
            lineage=[] if best is None else self._lineage(best),
            interval=self._search.interval,
            stopped=reason,
        )

    def _loop(self, begun: int) -> None:
        rounds = self._search.rounds
        for number in range(begun, rounds):
            self._known.append(self._round(number))
            self._save(last=number + 1 == rounds)
            self._announce(number, done=number + 1 - begun)
            if self._stopped:
                self._save(last=True)
                return

    def _round(self, number: int) -> list[Observation]:
        """Exploit, explore, train, evaluate, record."""
        space, program = self._search.searcher.space, self._program
        started = time.monotonic()
        if number == 0:
            parents, configs = [-1] * self._size, self._initial()
        else:
            parents, configs = self._search.plan(number, self._known)
        points = [space.point(config) for config in configs]
        arrays = program.arrays(points)
        self._inherit(parents, arrays, number)
        ages = np.full(self._size, number * self._search.interval)
        reached = program.advance(
            self._states, arrays, self._keys(self._numbers), ages, ages + self._search.interval,
            self._search.interval,
        )  # fmt: skip
        self._states = reached.states
        values, gradients, metrics = jax.device_get(
            (reached.values, reached.gradients, reached.metrics)
        )
        self._metrics = metrics
        told = []
        for i, point in enumerate(points):
            note = {"member": i, "round": number, "parent": parents[i]}
            told.append(self._record(number, i, point, float(values[i]), gradients, note))
        self._seconds = (time.monotonic() - started) / self._size
        return told

    def _record(
        self,
        number: int,
        i: int,
        point: Point,
        value: float,
        gradients: Mapping[str, Any],
        note: Mapping[str, Any],
    ) -> Observation:
        report = Report(
            value,
            gradient={p: g[i].tolist() for p, g in gradients.items()} or None,
            cost=float(self._search.interval),
            resource=float((number + 1) * self._search.interval),
        )
        label = number * self._size + i
        made = self._ledger.intake(point, report, number=label, note=note)
        told = self._ledger.record(made)
        best = self._ledger.best
        if best is not None and best.number == label and best.value is not None:
            self._best = best.value, label
            self._best_state = self._program.take(self._states, i)
        return told

    def _initial(self) -> list[Config]:
        """The first configurations: those known from a run before, or proposed."""
        known = {o.number: dict(o.config) for o in self._ledger.history}
        known |= {s.number: s.config for s in self._ledger.pending}
        return [known[i] if i in known else self._ledger.ask().config for i in range(self._size)]

    def _inherit(self, parents: list[int], config: Mapping[str, Any], number: int) -> None:
        """States for a round: of the parents, or new ones."""
        source = np.array(parents)
        # A member that begins anew has other keys than in its first life.
        keys = self._keys(self._numbers + number * self._size)
        if self._states is None:
            self._states = self._program.begin(config, keys)
            return
        if (source != self._numbers).any():
            kept = np.where(source < 0, self._numbers, source)
            self._states = self._program.gather(self._states, kept)
        if (source < 0).any():
            others = self._program.begin(config, keys)
            self._states = self._program.merge(self._states, others, source < 0)

    def _keys(self, numbers: np.ndarray) -> jax.Array:
        return self._program.keys(self._seed, numbers)

    def _lineage(self, best: Observation) -> list[Observation]:
        by_number = {o.number: o for o in self._ledger.history}
        found = [best]
        while (parent := found[-1].note["parent"]) >= 0:
            found.append(by_number[(found[-1].note["round"] - 1) * self._size + parent])
        return found[::-1]

    def _announce(self, number: int, done: int) -> None:
        for i, told in enumerate(self._known[number]):
            metrics = jax.tree.map(lambda leaf, i=i: leaf[i].tolist(), self._metrics)
            self._tell(told, self._seconds, {"metrics": metrics})
        steps = self._size * self._search.interval
        alive = sum(o.status == "complete" for o in self._known[number])
        best = None if self._best is None else self._best[0]
        self._show(alive, done * steps, best, (self._search.rounds - number - 1) * steps)

    # State

    def _keep(self, path: str | os.PathLike[str]) -> None:
        self._ledger.save(path)

    def _members(self) -> tuple[dict[str, Stored], dict[str, Any]]:
        stored = {"all": Stored(len(self._known), to_host(self._states))}
        if self._best is not None:
            stored["best"] = Stored(self._best[1], to_host(self._best_state))
        return stored, {"best": self._best}

    def _restore(self) -> int:
        """Take over what an earlier run has left; the round to go on with.

        Rounds after the checkpoint are trained again, with the same results.
        """
        path = self._keeping.state_path
        if path is not None and state_exists(path):
            self._ledger.restore(path)
        if self._keeping.members_path is None or not self._ledger.history:
            return 0
        stored, note = self._stored_members()
        if "all" not in stored:
            return 0
        space = self._search.searcher.space
        someone = self._program.begin(
            self._program.arrays([space.point(space.default())] * self._size),
            self._keys(self._numbers),
        )
        self._states = self._program.restore(stored["all"].leaves, someone)
        if note["best"] is not None:
            self._best = tuple(note["best"])
            self._best_state = self._program.row(stored["best"].leaves, someone)
        by_number = {o.number: o for o in self._ledger.history}
        rounds = stored["all"].age
        self._known = [
            [by_number[r * self._size + i] for i in range(self._size)] for r in range(rounds)
        ]
        return rounds
