"""What is known when a suggestion is made, and the offers that movers make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from strategies.observation import Observation, Suggestion
from strategies.searchers.hypergradient.chains import Chain
from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.points import Point
from strategies.space import SearchSpace
from strategies.surrogates.acquisition import expected_improvement


@dataclass(frozen=True, eq=False)
class View:
    """The history for a suggestion, at least one point of which has a value.

    - `known`: the points with a value, by number.
    - `places`: of everything tried or being tried.
    - `waiting`: the moves that are being evaluated.
    - `informative`, `graded`: masks of the coordinates that gradients say something about, and of
      those among them whose gradients are trusted.
    - `chains`: the best, best first.
    """

    space: SearchSpace
    seed: int
    number: int
    rng: np.random.Generator
    history: Sequence[Observation]
    pending: Sequence[Suggestion]
    known: Sequence[Point]
    places: np.ndarray
    waiting: Sequence[Move]
    informative: np.ndarray
    graded: np.ndarray
    chains: Sequence[Chain]

    @property
    def best(self) -> Chain:
        """The chain with the incumbent."""
        return self.chains[0]

    @property
    def level(self) -> float:
        """The incumbent's value."""
        return self.best.best.value

    @cached_property
    def tried(self) -> set[bytes]:
        """The places as bytes."""
        return {unit.tobytes() for unit in self.places}

    @cached_property
    def spread(self) -> float:
        """What may be gained where nothing is known: what the last evaluations have gained.

        Where that is next to nothing, a share of all that has been gained.
        """
        values = np.array([point.value for point in self.known])
        before = values[: max(len(values) - CONSTANTS.recent, 1)].min()
        gained = float(before) - self.level
        # Nothing differs yet: what a step is predicted to gain is all that is known.
        unknown = self.ahead or abs(self.level) or 1.0
        return max(gained, CONSTANTS.worth * self.above) or unknown

    @cached_property
    def above(self) -> float:
        """Median distance of the values from the best, or the largest if that is zero."""
        values = np.array([point.value for point in self.known])
        return float(np.median(values)) - self.level or float(values.max()) - self.level

    @cached_property
    def ahead(self) -> float:
        """How far below the incumbent its chain is expected to end."""
        return CONSTANTS.horizon * self.best.next[0].decrease

    def record(self, way: str) -> float:
        """Achieved over promised gain of a way: the mean of its moves and one that kept its word.

        What a start achieved is what its chain did, also by later steps. What a descent is worth
        changes on its way, so that its last moves count; luck elsewhere does not.
        """
        descent = way.startswith("descent")
        ratios: list[float] = []
        for point in reversed(self.known):
            move = point.move
            if move is None or move.way != way or not move.promise or move.level is None:
                continue
            value = self.reached[point.chain] if move.move == "start" else point.value
            share = (move.level - value) / move.promise
            ratios.append(min(max(share, 0.0), CONSTANTS.most))
            if descent and len(ratios) == CONSTANTS.recent:
                break
        return (1.0 + sum(ratios)) / (1.0 + len(ratios))

    @cached_property
    def reached(self) -> dict[int, float]:
        """The best value of each chain."""
        reached: dict[int, float] = {}
        for point in self.known:
            reached[point.chain] = min(point.value, reached.get(point.chain, np.inf))
        return reached

    def promised(self, way: str) -> float:
        """What is expected of the moves of a way that are being evaluated."""
        return sum(move.promise for move in self.waiting if move.way == way)


@dataclass(frozen=True, eq=False)
class Offer:
    """A place, and what is expected of it.

    - `move`: without its promise.
    - `gain`, `deviation`: mean and standard deviation of what it gains below the incumbent.
    - `make`: its configuration, or `None` if on a closer look there is none.
    - `cost`: evaluations until the gain is there.
    - `most`: bound of what is promised.
    - `rate`: what the same has gained lately for each evaluation.
    """

    move: Move
    gain: float
    deviation: float
    make: Callable[[], dict[str, Any] | None]
    cost: float = 1.0
    record: float = 1.0
    most: float = np.inf
    rate: float = 0.0

    @cached_property
    def promise(self) -> float:
        """Expected improvement for one evaluation."""
        mean, spread = np.array(-self.gain), np.array(max(self.deviation, 1e-300))
        return float(expected_improvement(mean, spread, 0.0)) / self.cost

    @property
    def worth(self) -> float:
        """The promise by the mover's record, or what is gained at the latest rate."""
        return max(min(self.promise, self.most / self.cost) * self.record, self.rate)

    def accepted(self, number: int, config: dict[str, Any]) -> Suggestion:
        """The suggestion, which remembers what was promised."""
        promise = min(self.promise * self.cost, self.most)
        return Suggestion(number, config, replace(self.move, promise=promise).note())


class Mover(Protocol):
    """Something that knows where to go."""

    def __call__(self, view: View, least: float) -> list[Offer]:
        """Its offers; those worth less than `least` may be left out."""
