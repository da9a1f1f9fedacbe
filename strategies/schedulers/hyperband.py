"""Hyperband: successive halving at several trade-offs between many and long trainings.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar (2018), "Hyperband: a novel bandit-based approach to
hyperparameter optimization", JMLR 18. With `S` the index of the top rung, bracket `s = S, ..., 0`
starts `n_s = ceil((S + 1) / (s + 1) * eta^s)` configurations at resource `R / eta^s`, keeps the
best `floor(n / eta)` of each rung, and trains those `eta` times as long.

There are two formulas in use for `n_s`; this is the paper's. It gives 81, 34, 15, 8, 5 for `R = 81`
and `eta = 3` (HpBandSter and DEHB have 81, 27, 9, 6, 5).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from strategies import arguments
from strategies.observation import Observation
from strategies.schedulers.base import Scheduler
from strategies.searchers.base import Searcher


def bracket_size(top: int, s: int, eta: int) -> int:
    """The number of configurations that bracket `s` of `top, ..., 0` starts with."""
    return ((top + 1) * eta**s + s) // (s + 1)


def hyperband_cost(scheduler: "Hyperband") -> int | float:
    """The budget of one whole Hyperband, if every evaluation trains from scratch."""
    arguments.instance("scheduler", scheduler, Hyperband)
    top, eta, resources = scheduler.top, scheduler.eta, scheduler.resources
    return sum(
        bracket_size(top, s, eta) // eta**i * resources[top - s + i]
        for s in range(top + 1)
        for i in range(s + 1)
    )


def pair(a: int, b: int) -> int:
    """Cantor's pairing function: one natural number for two, without gaps."""
    return (a + b) * (a + b + 1) // 2 + b


@dataclass(frozen=True)
class Bracket:
    """One bracket, named by the rung at which it starts: that does not change when R grows.

    - `iteration`: which repetition of Hyperband it belongs to.
    - `bottom`: the level of its lowest rung; 0 is the most aggressive bracket.
    - `numbers`: the configurations that it starts with, in the order of their creation. A number
      depends on the bracket and on the position in it, and on nothing else; so does the randomness
      of its proposal. Two runs that differ only in their maximum resource, or only in when results
      arrived, see the same random configurations.
    """

    iteration: int
    bottom: int
    numbers: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many configurations it starts with."""
        return len(self.numbers)


@functools.cache
def _bracket(iteration: int, bottom: int, size: int, first: int) -> Bracket:
    # The points that the searcher was told to try first are its lowest numbers: they go to the
    # first bracket, and all others follow them.
    given = first if iteration == bottom == 0 else 0
    numbers = (j if j < given else first + pair(pair(iteration, bottom), j) for j in range(size))
    return Bracket(iteration, bottom, tuple(numbers))


@dataclass(frozen=True)
class Rung:
    """Where a bracket stands at a level: its members, in the order of their creation."""

    level: int
    members: tuple[int, ...]


class Hyperband(Scheduler):
    """Hyperband, synchronous, with any searcher inside.

    **Arguments:**

    - `searcher`, `max_resource`, `min_resource`, `eta`, `integer`: see `Scheduler`.
    - `iterations`: how often the whole set of brackets is run. Default 1; `None` for as long as
      jobs are asked for.

    A rung is decided when all its members have reported. Meanwhile `ask` hands out jobs of later
    brackets, so workers do not wait for stragglers. Failed members are never promoted: a rung with
    fewer finite values than places promotes fewer, and a bracket without any ends there.
    """

    def __init__(
        self,
        searcher: Searcher,
        max_resource: int | float | Fraction,
        *,
        min_resource: int | float | Fraction = 1,
        eta: int = 3,
        integer: bool = True,
        iterations: int | None = 1,
    ) -> None:
        super().__init__(
            searcher, max_resource, min_resource=min_resource, eta=eta, integer=integer
        )
        self.iterations = (
            None if iterations is None else arguments.integer("iterations", iterations, 1)
        )
        # Brackets that need not be looked at again; one that grew is another.
        self._ended: set[Bracket] = set()
        # What the open rungs of the others lack, until one of their members has a result.
        self._lacking: dict[Bracket, list[tuple[int, int]]] = {}

    def brackets(self) -> Iterator[Bracket]:
        """All brackets, in the order in which they are run: most aggressive first."""
        iteration = 0
        while self.iterations is None or iteration < self.iterations:
            for bottom in range(self.top + 1):
                yield self._bracket(iteration, bottom)
            iteration += 1

    def _bracket(self, iteration: int, bottom: int) -> Bracket:
        size = bracket_size(self.top, self.top - bottom, self.eta)
        return _bracket(iteration, bottom, size, len(self.searcher.first))

    def rungs(self, bracket: Bracket) -> Iterator[Rung]:
        """The rungs of a bracket as far as results allow, ending with the one that is open.

        Computed anew from the results: the state of a bracket is nothing but its results.
        """
        members = bracket.numbers
        for level in range(bracket.bottom, self.top + 1):
            if not members:
                return
            yield Rung(level, members)
            if not all(n in self.candidates for n in members):
                return
            if not all(level in self.candidates[n].results for n in members):
                return
            places = bracket.size // self.eta ** (level - bracket.bottom + 1)
            members = tuple(sorted(self._promoted(bracket, level, members, places)))

    @property
    def finished(self) -> bool:
        """Whether all brackets have ended."""
        if self.iterations is None:
            return False
        return not self._pending and all(not self._open(b) for b in self.brackets())

    def progress(self) -> str:
        """One line for each bracket that has begun: how far each of its rungs is."""
        lines = []
        resources = self.resources
        for bracket in self.brackets():
            if bracket.numbers[0] not in self.candidates:
                break
            rungs = [
                f"{resources[rung.level]}: "
                f"{len(self._ranked(known, rung.level))}/{len(rung.members)}"
                for rung in self.rungs(bracket)
                if (known := [n for n in rung.members if n in self.candidates])
            ]
            lines.append(
                f"iteration {bracket.iteration}, bracket from {resources[bracket.bottom]}: "
                + ", ".join(rungs)
            )
        return "\n".join(lines)

    def _promoted(
        self, bracket: Bracket, level: int, members: Sequence[int], places: int
    ) -> Sequence[int]:
        """Who goes on from a rung that is complete."""
        del bracket
        return self._finite(members, level)[:places]

    def _finite(self, numbers: Sequence[int], level: int) -> list[int]:
        """Those with a finite value at a level, best first."""
        ranked = self._ranked(numbers, level)
        return [n for n in ranked if math.isfinite(self.candidates[n].value(level))]

    def _open(self, bracket: Bracket) -> list[tuple[int, int]]:
        """The members of the bracket's open rung that lack a result, with their level."""
        if bracket in self._ended:
            return []
        if bracket in self._lacking:
            return self._lacking[bracket]
        rung = None
        for rung in self.rungs(bracket):  # noqa: B007 -- the last one is wanted
            pass
        assert rung is not None
        lacking = [
            (n, rung.level)
            for n in rung.members
            if n not in self.candidates or rung.level not in self.candidates[n].results
        ]
        if lacking:
            self._lacking[bracket] = lacking
        else:
            self._ended.add(bracket)
        return lacking

    def _record(self, number: int, level: int, observation: Observation) -> None:
        super()._record(number, level, observation)
        self._lacking = {b: known for b, known in self._lacking.items() if number not in b.numbers}

    def _begun(self) -> Iterator[Bracket]:
        for bracket in self.brackets():
            if bracket.numbers[0] not in self.candidates:
                return
            yield bracket

    def _promotions(self) -> Sequence[tuple[int, int]]:
        return [
            (number, level)
            for bracket in self._begun()
            for number, level in self._open(bracket)
            if number in self.candidates and number not in self._pending
        ]

    def _place(self) -> tuple[int, int] | None:
        for bracket in self.brackets():
            for number in bracket.numbers:
                if number not in self.candidates:
                    return number, bracket.bottom
        return None

    def _load(self, state: Mapping[str, Any]) -> None:
        self._ended, self._lacking = set(), {}
        super()._load(state)

    _extent = "iterations"

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"iterations": self.iterations}
