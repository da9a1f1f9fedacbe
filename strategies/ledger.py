"""What a search has asked and was told: the memory around a searcher, which has none."""

import functools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from strategies.arguments import instance, integer
from strategies.intake import Intake
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher, require_searcher
from strategies.space import SearchSpace
from strategies.state import (
    OtherSearchError,
    as_json,
    expect_search,
    observation_from_json,
    observation_to_json,
    reading,
    restore_state,
    search_identity,
    write_state,
)

_FORMAT = "hypergrad searcher state"
_VERSION = 2


@dataclass(frozen=True)
class _Entry:
    """An observation, and its JSON text: it never changes, and each save needs it."""

    space: SearchSpace
    observation: Observation

    @functools.cached_property
    def text(self) -> str:
        return as_json(observation_to_json(self.space, self.observation))


class Ledger:
    """The record of a search: suggestions, which of them are pending, and what was told of them.

    For programs that run trials themselves, and inside the engines that keep no record of their
    own:

    ```python
    from strategies import Float, Ledger, Observation, RandomSearcher, SearchSpace

    ledger = Ledger(RandomSearcher(SearchSpace({"x": Float(0.0, 1.0)}), seed=0))
    suggestion = ledger.ask()
    ledger.tell(Observation(suggestion.config, value=1.0, number=suggestion.number))
    print(ledger.best)
    ```

    **Arguments:**

    - `searcher`: proposes. Two ledgers of one searcher know nothing of each other.
    """

    def __init__(self, searcher: Searcher) -> None:
        require_searcher(searcher)
        self.searcher = searcher
        #: What checks the reports of trials; strict, see `Intake`.
        self.intake = Intake(searcher.space, searcher.check, strict=True)
        self._next = 0
        self._pending: dict[int, Suggestion] = {}
        #: Numbers of pending suggestions whose evaluation may have killed a worker.
        self.suspects: set[int] = set()
        self._told: dict[int, _Entry] = {}
        self._given: list[_Entry] = []

    @property
    def space(self) -> SearchSpace:
        """Where the searcher searches."""
        return self.searcher.space

    def ask(self, context: float | Mapping[str, Any] | None = None) -> Suggestion:
        """A configuration to try; it is pending until `tell` or `forget`.

        **Arguments:**

        - `context`: what is known of the instance, a number, or of the task, a mapping, that it is
          for. Contextual bandits need it, and a `BayesSearcher` with a space of contexts; nothing
          else takes it.

        **Raises:** `ValueError` for a context that does not fit, or of a searcher without any.
        """
        more = {} if context is None else {"context": context}
        if more:
            self.searcher.expect_context(context)
        suggestion = self.searcher.propose(self._next, self.history, self.pending, **more)
        self._next += 1
        self._pending[suggestion.number] = suggestion
        return suggestion

    def tell(self, observation: Observation) -> Observation:
        """Record what came of a suggestion, or of any other configuration (`number=None`).

        Telling a number again replaces what was told. A value that is missing or not finite is a
        failed observation, kept without gradient. Gradient entries that are not finite are ignored.

        **Returns:** What is recorded.

        **Raises:** `ValueError` naming the key, what was expected and what was received, if the
        configuration or the gradient does not fit the space, or the searcher cannot use it. Nothing
        is recorded or lost then: the suggestion is still pending.
        """
        instance("observation", observation, Observation)
        return self.record(
            self.intake(
                observation.point or observation.config,
                observation.as_report(),
                number=observation.number,
                note=observation.note or self.note(observation.number),
                status=observation.status,
            )
        )

    def record(self, observation: Observation) -> Observation:
        """`tell` for an observation that an `Intake` has made."""
        instance("observation", observation, Observation)
        number = observation.number
        if number is None:
            self._given.append(_Entry(self.space, observation))
            return observation
        asked = self._pending.pop(number, None)
        self.suspects.discard(number)
        if not observation.note and asked is not None:
            observation = replace(observation, note=asked.note)
        self._told[number] = _Entry(self.space, observation)
        self._next = max(self._next, number + 1)
        return observation

    def note(self, number: int | None) -> Mapping[str, Any]:
        """The searcher's remark on a suggestion, pending or told; empty for an unknown number."""
        if number is None:
            return {}
        number = integer("number", number, 0)
        asked = self._pending.get(number)
        if asked is not None:
            return asked.note
        told = self._told.get(number)
        return {} if told is None else told.observation.note

    def warm_start(self, observations: Iterable[Observation]) -> dict[int, str]:
        """Learn from an earlier search, of this space or of one like it.

        What fits the space becomes a point that was not suggested, without the note of the earlier
        searcher but for its context; what is known already is not counted twice.

        **Arguments:**

        - `observations`: such as another ledger's `history`, or what
          `strategies.optuna.observations_of` reads from a study. Values are minimised.

        **Returns:** For each observation that was left out, by its position, why: it has a value
        outside its domain, a hyperparameter that this space does not have, or lacks one.
        """
        left_out: dict[int, str] = {}
        if not isinstance(observations, Iterable):
            raise ValueError(f"'observations': expected a list, received {observations!r:.80}")
        for position, item in enumerate(observations):
            if not isinstance(item, Observation):
                raise ValueError(f"'observations': expected observations, received {item!r:.80}")
            try:
                note = {key: item.note[key] for key in ("context",) if key in item.note}
                told = self.tell(replace(item, number=None, note=note))
            except ValueError as error:
                left_out[position] = str(error)
                continue
            if any(entry.observation == told for entry in self._given[:-1]):
                self._given.pop()
                left_out[position] = "it is known already"
        return left_out

    def forget(self, number: int) -> None:
        """Drop a pending suggestion that will never be told; unknown numbers are ignored."""
        number = integer("number", number, 0)
        self._pending.pop(number, None)
        self.suspects.discard(number)

    @property
    def history(self) -> list[Observation]:
        """Everything told, points that were not suggested first, then by number."""
        return [entry.observation for entry in self._entries()]

    def _entries(self) -> list[_Entry]:
        return [*self._given, *(self._told[number] for number in sorted(self._told))]

    @property
    def trials(self) -> int:
        """How many suggestions were told; points that were not suggested are no trials."""
        return len(self._told)

    @property
    def pending(self) -> list[Suggestion]:
        """Suggestions that were neither told nor forgotten, by number."""
        return [self._pending[number] for number in sorted(self._pending)]

    @property
    def best(self) -> Observation | None:
        """The complete observation with the smallest value; of several, with the smallest first.

        Among those that are feasible, if there are any, else among those with the least violation.
        """
        complete = [item for item in self.history if item.status == "complete"]
        return min(complete, key=lambda item: item.rank, default=None)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything told and pending as JSON values."""
        return self._head() | {"history": [json.loads(entry.text) for entry in self._entries()]}

    def _head(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            **search_identity(self.searcher),
            "next": self._next,
            "pending": [
                {
                    "number": item.number,
                    "config": self.space.to_json(item.point or item.config),
                    "note": dict(item.note),
                }
                for item in self.pending
            ],
            **({"suspects": sorted(self.suspects)} if self.suspects else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what is known by what `state_dict` gave: all of it, or nothing if that fails.

        **Raises:** `ValueError` if it is damaged, or of another format, searcher, seed or space.
        """
        fresh = Ledger(self.searcher)
        with reading():
            if state.get("format") != _FORMAT or state.get("version") not in (1, _VERSION):
                received = f"{state.get('format')!r} version {state.get('version')!r}"
                raise OtherSearchError(
                    f"state: expected {_FORMAT!r} version {_VERSION}, received {received}"
                )
            expect_search(state, self.searcher)
            fresh._next = _count(state["next"])
            for item in state["pending"]:
                number, point = _count(item["number"]), self.space.point_from_json(item["config"])
                fresh._pending[number] = Suggestion(number, point.config, item["note"], point)
            fresh.suspects = {_count(number) for number in state.get("suspects", ())}
            for item in state["history"]:
                if item["number"] is not None:
                    _count(item["number"])
                fresh.tell(observation_from_json(self.space, item))
        self.intake = fresh.intake
        self._next, self._pending = fresh._next, fresh._pending
        self.suspects = fresh.suspects
        self._told, self._given = fresh._told, fresh._given

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file; the previous one is kept as `path + ".backup"`.

        The file is complete at every moment: it is written under a temporary name and renamed.

        **Raises:** `ValueError` if a searcher's note is no JSON.
        """
        head = as_json(self._head())
        history = ", ".join(entry.text for entry in self._entries())
        write_state(path, f'{head[:-1]}, "history": [{history}]}}')

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, from the backup if the file itself is damaged (with a warning).

        **Raises:** `ValueError` if neither can be read, or if they are of another search.
        `FileNotFoundError` if there is neither.
        """
        restore_state(path, self.load_state_dict)


def _count(number: Any) -> int:
    """A number of suggestions, of a size that a search can reach."""
    if type(number) is not int or not 0 <= number < 2**53:
        raise ValueError(f"expected a number of a suggestion, received {number!r:.40}")
    return number


def ledger_of(searcher: Searcher | Ledger) -> Ledger:
    """The ledger itself, or the one that belongs to a searcher."""
    if isinstance(searcher, Ledger):
        return searcher
    require_searcher(searcher)
    return searcher.ledger
