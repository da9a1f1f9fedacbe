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
        """What may be gained where nothing is known: what the later half of the points has gained.

        Where that is next to nothing, a share of the median distance of all from the incumbent.
        """
        values = np.array([point.value for point in self.known])
        gained = float(values[: (len(values) + 1) // 2].min()) - self.level
        above = float(np.median(values)) - self.level or float(values.max()) - self.level
        # Nothing differs yet: what a step is predicted to gain is all that is known.
        unknown = self.ahead or abs(self.level) or 1.0
        return max(gained, CONSTANTS.worth * above) or unknown

    @cached_property
    def ahead(self) -> float:
        """How far below the incumbent its chain is expected to end."""
        return CONSTANTS.horizon * self.best.step()[0].decrease

    def record(self, way: str) -> float:
        """Achieved over promised gain of a way: the mean of logarithms, with one more of zero.

        What a start achieved is what its chain did, also by later steps.
        """
        reached: dict[int, float] = {}
        for point in self.known:
            reached[point.chain] = min(point.value, reached.get(point.chain, np.inf))
        ratios = []
        for point in reversed(self.known):
            move = point.move
            if move is None or move.way != way or not move.promise or move.level is None:
                continue
            value = point.value if way in ("descent", "descent, another") else reached[point.chain]
            share = (move.level - value) / move.promise
            ratios.append(np.log(np.clip(share, CONSTANTS.least, CONSTANTS.most)))
            if len(ratios) == CONSTANTS.recent:
                break
        return float(np.exp(np.sum(ratios) / (len(ratios) + 1)))

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
    - `most`: bound of the promise.
    """

    move: Move
    gain: float
    deviation: float
    make: Callable[[], dict[str, Any] | None]
    cost: float = 1.0
    record: float = 1.0
    most: float = np.inf

    @cached_property
    def promise(self) -> float:
        """Expected improvement for one evaluation."""
        mean, spread = np.array(-self.gain), np.array(max(self.deviation, 1e-300))
        return min(float(expected_improvement(mean, spread, 0.0)), self.most) / self.cost

    @property
    def worth(self) -> float:
        """The promise by the mover's record: what offers are compared by."""
        return self.promise * self.record

    def accepted(self, number: int, config: dict[str, Any]) -> Suggestion:
        """The suggestion, which remembers what was promised."""
        return Suggestion(number, config, replace(self.move, promise=self.promise).note())


class Mover(Protocol):
    """Something that knows where to go."""

    def __call__(self, view: View, least: float) -> list[Offer]:
        """Its offers; those worth less than `least` may be left out."""
