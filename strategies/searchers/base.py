"""What every searcher is: a pure function that proposes."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from strategies.arguments import instance, instances, integer
from strategies.feasibility import feasible_first
from strategies.observation import Observation, Suggestion
from strategies.searchers.single_thread import single_thread
from strategies.space import SearchSpace
from strategies.space.combinations import combinations

if TYPE_CHECKING:
    from strategies.ledger import Ledger

#: Draws that may turn out to have been tried; then so much of what is left is listed.
_DRAWS, _LEFT = 100, 10_000

#: What version 0.1 had as members of the searcher.
_RECORDS = ("ask", "tell", "forget", "warm_start", "history", "pending", "best")
_STATES = ("state_dict", "load_state_dict", "save", "restore")


#: Values and slopes beyond the one are given to searchers times the other, a power of two so that
#: no digit is lost: products of three of them are still floats.
_HUGE, _UNIT = 1e100, 2.0**-700

T = TypeVar("T", Observation, Suggestion)
#: What has a note, in which a context may be.
Item = TypeVar("Item", bound=Observation | Suggestion)


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
    #: Whether trials may report several objectives.
    several_objectives = False

    #: Names of other searchers whose saved searches this one may go on with.
    continues: tuple[str, ...] = ()

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
    ):
        self.space = SearchSpace.of(space)
        self.seed = integer("seed", seed, 0)
        if isinstance(first, Mapping | str) or not isinstance(first, Iterable):
            raise ValueError(f"'first': expected a list of configurations, received {first!r:.80}")
        self.first = tuple(self.space.complete(point) for point in first)

    def check(self, observation: Observation) -> None:
        """What this searcher demands beyond the space of an observation that has not failed.

        Here that it has one objective, unless `several_objectives`. All engines and schedulers ask,
        through `strategies.intake.Intake`.

        **Raises:** `ValueError` naming what was expected and what was received.
        """
        instance("observation", observation, Observation)
        if len(observation.values) > 1 and not self.several_objectives:
            raise ValueError(
                f"'values': {type(self).__name__} expected one objective, received "
                f"{len(observation.values)}; MultiObjectiveSearcher takes several"
            )

    def expect_context(self, context: Any) -> None:
        """Check what is known of a task or instance, before `propose` is given it.

        Here nothing may be: a searcher whose `propose` takes a `context` overrides this.

        **Raises:** `ValueError` naming what was expected and what was received.
        """
        if context is not None:
            raise ValueError(
                "'context': expected none, or a BayesSearcher(context=...) or a contextual bandit, "
                f"received one beside {type(self).__name__}"
            )

    def within(self, items: Iterable[Item], context: Any) -> list[Item]:
        """The observations or suggestions of one context; without a context, all of them."""
        return [item for item in items if context is None or item.note.get("context") == context]

    def seen(self, history: Sequence[Observation]) -> Sequence[Observation]:
        """A history as `_propose` is given it.

        Here a ranking without constraints, in which the infeasible are worse than all feasible ones
        (`strategies.feasibility.feasible_first`). A searcher that models constraints returns the
        history itself.
        """
        return feasible_first(history)

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
        number = integer("number", number, 0)
        history = instances("history", history, Observation)
        pending = instances("pending", pending, Suggestion)
        if number < len(self.first):
            return self._located(Suggestion(number, self.first[number], {"origin": "first"}))
        history = _within_reach(sorted(map(self._received, history), key=_place))
        history = self.seen(history)
        pending = sorted(map(self._located, pending), key=lambda suggestion: suggestion.number)
        with single_thread():
            suggestion = self._propose(number, history, pending)
        if not isinstance(suggestion, Suggestion):
            raise ValueError(
                f"'searcher': expected a suggestion for trial {number}, received {suggestion!r:.80}"
            )
        if not self.space.feasible(suggestion.config):
            suggestion = replace(suggestion, config=self._repaired(suggestion, history))
        suggestion = self._located(suggestion)
        active = self.space.active_mask(suggestion.config)
        if (self.space.differentiable & active).any():
            return suggestion
        # A discrete configuration that was tried already teaches nothing new.
        config = self._untried(suggestion, [*history, *pending])
        return suggestion if config is None else self._located(replace(suggestion, config=config))

    def _untried(
        self, suggestion: Suggestion, tried: Sequence[Observation | Suggestion]
    ) -> dict[str, Any] | None:
        """The suggested configuration or a draw; of what is left where draws find nothing new."""
        known = {repr(item.config) for item in tried}
        rng = np.random.default_rng([self.seed, suggestion.number, 1])
        config: Any = suggestion.config
        for _ in range(_DRAWS):
            if repr(config) not in known:
                return config
            config = self.space.sample(rng)
        domains = self.space.domains
        if any(domain.count == math.inf for domain in domains.values()):
            return None
        every = combinations(self.space, lambda path: domains[path].every())
        left = list(islice((one for one in every if repr(one) not in known), _LEFT))
        return left[int(rng.integers(len(left)))] if left else None

    def _received(self, observation: Observation) -> Observation:
        """An observation of this space, checked; at once if it was checked before."""
        observation = self._located(observation)
        if observation.status != "failed":
            self.check(observation)
        return observation

    def _located(self, item: T) -> T:
        """An observation or suggestion with its configuration's point in this space."""
        known = item.point
        if known is not None and known.space is self.space and known.config is item.config:
            return item
        point = self.space.point(item.config)
        return replace(item, config=point.config, point=point)

    def _repaired(self, suggestion: Suggestion, history: Sequence[Observation]) -> dict[str, Any]:
        """The farthest allowed point on the way from the incumbent to a suggestion, or a draw."""
        complete = [item for item in history if item.status == "complete"]
        if complete:
            best = min(complete, key=lambda item: (*item.rank, item.number or 0))
            start = best.unit
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


def require_searcher(value: Any) -> None:
    """Refuse what is no searcher.

    **Raises:** `ValueError`.
    """
    if not isinstance(value, Searcher):
        raise ValueError(
            f"'searcher': expected a searcher such as BayesSearcher(space), received {value!r:.80}"
        )


def _within_reach(history: list[Observation]) -> list[Observation]:
    """The history, in units in which products of values and slopes do not overflow."""
    if max((item.size for item in history), default=0.0) <= _HUGE:
        return history
    return [
        replace(
            item,
            value=None if item.value is None else _UNIT * item.value,
            gradient=_scaled(item.gradient),
            values=tuple(_UNIT * each for each in item.values),
            gradients=tuple(_scaled(each) for each in item.gradients),
        )
        for item in history
    ]


def _scaled(gradient: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return gradient and {p: (_UNIT * np.asarray(g, float)).tolist() for p, g in gradient.items()}


def _place(observation: Observation) -> tuple[int, float, str]:
    if observation.number is not None:
        return observation.number, observation.resource or 0.0, ""
    value = observation.value
    return -1, float("inf") if value is None else value, repr(observation.config)
