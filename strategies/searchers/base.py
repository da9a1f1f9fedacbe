"""What every searcher is: a pure function that proposes."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies.observation import Observation, Suggestion
from strategies.searchers.single_thread import single_thread
from strategies.space import SearchSpace

if TYPE_CHECKING:
    from strategies.ledger import Ledger

#: What version 0.1 had as members of the searcher.
_RECORDS = ("ask", "tell", "forget", "warm_start", "history", "pending", "best")
_STATES = ("state_dict", "load_state_dict", "save", "restore")


class Searcher(ABC):
    """Proposes configurations.

    A subclass implements `_propose`, a function of the space, the seed, the options and its
    arguments only: no state, and randomness from `self.rng(number)`. So the same results lead to
    the same suggestions on every engine, whatever the timing, and after a restart. `propose` is
    that function with the points to try first and the filter of duplicates around it. What was
    asked and told is kept by a `Ledger`, or by the engine.

    **Arguments:**

    - `space`: where to search.
    - `seed`: an integer.
    - `first`: configurations to try first, nested or flat, complete or partial; what is missing is
      completed with defaults.
    """

    #: Whether `propose` compares results at different resources by itself. A scheduler shows such a
    #: searcher the results of all rungs, and any other those of one rung.
    all_resources = False

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, first: Iterable[Mapping[str, Any]] = ()
    ):
        if not isinstance(space, SearchSpace):
            space = SearchSpace(space)
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"'seed': expected an integer >= 0, received {seed!r}")
        self.space = space
        self.seed = int(seed)
        self.first = tuple(space.complete(point) for point in first)

    def check(self, observation: Observation) -> None:
        """What this searcher demands beyond the space of an observation that has not failed.

        Here nothing. All engines and schedulers ask, through `strategies.intake.Intake`.

        **Raises:** `ValueError` naming what was expected and what was received.
        """
        del observation

    def rng(self, number: int) -> np.random.Generator:
        """The generator that decides everything random about one suggestion."""
        return np.random.default_rng([self.seed, number])

    def propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        """The configuration to try next: a pure function, whatever the order of its arguments.

        **Arguments:**

        - `number`: position of the suggestion in the search, from 0.
        - `history`: all observations so far.
        - `pending`: suggestions that are being evaluated.
        """
        if number < len(self.first):
            return Suggestion(number, self.first[number], {"origin": "first"})
        history = sorted(history, key=_place)
        pending = sorted(pending, key=lambda suggestion: suggestion.number)
        with single_thread():
            suggestion = self._propose(number, history, pending)
        if not self.space.feasible(suggestion.config):
            suggestion = replace(suggestion, config=self._repaired(suggestion, history))
        if self.space.differentiable.any():
            return suggestion
        # In a discrete space a configuration that was tried already teaches nothing new.
        tried = {repr(item.config) for item in history}
        tried.update(repr(item.config) for item in pending)
        rng = np.random.default_rng([self.seed, number, 1])
        config = suggestion.config
        for _ in range(100):
            if repr(config) not in tried:
                return replace(suggestion, config=config)
            config = self.space.sample(rng)
        return suggestion

    def _repaired(self, suggestion: Suggestion, history: Sequence[Observation]) -> dict[str, Any]:
        """The farthest allowed point on the way from the incumbent to a suggestion, or a draw."""
        complete = [item for item in history if item.status == "complete"]
        if complete:
            best = min(complete, key=lambda item: (item.value, item.number or 0))
            start = self.space.encode(best.config)
            way = self.space.encode(suggestion.config) - start
            for fraction in (0.9, 0.75, 0.5, 0.25, 0.1):
                config = self.space.decode(start + fraction * way)
                if self.space.feasible(config) and config != best.config:
                    return config
        return self.space.sample(np.random.default_rng([self.seed, suggestion.number, 2]))

    @abstractmethod
    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        """`propose` for the searcher at hand; both lists come sorted by number."""

    # For programs that keep no ledger of their own

    @functools.cached_property
    def ledger(self) -> "Ledger":
        """A ledger of this searcher, made when it is first asked for.

        Programs of version 0.1 asked and told the searcher itself; `searcher.ask()` and its like
        are still understood, as `searcher.ledger.ask()`.
        """
        from strategies.ledger import Ledger

        return Ledger(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name in _RECORDS or name in _STATES:
                return getattr(self.ledger, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _place(observation: Observation) -> tuple[int, float, str]:
    if observation.number is not None:
        return observation.number, observation.resource or 0.0, ""
    value = observation.value
    return -1, float("inf") if value is None else value, repr(observation.config)
