"""What every searcher is: a pure function that proposes, and a ledger around it."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from strategies.observation import Observation, Suggestion
from strategies.searchers.single_thread import single_thread
from strategies.space import SearchSpace
from strategies.state import (
    observation_from_json,
    observation_to_json,
    read_state,
    write_state,
)

_FORMAT = "hypergrad searcher state"
_VERSION = 1


class Searcher(ABC):
    """Proposes configurations.

    A subclass implements `_propose`, a function of the space, the seed, the options and its
    arguments only: no state, and randomness from `self.rng(number)`. So the same results lead to
    the same suggestions on every engine, whatever the timing, and after a restart. `propose` is
    that function with the points to try first and the filter of duplicates around it; `ask` and
    `tell` keep the ledger for engines that do not keep their own.

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
        self._next = 0
        self._pending: dict[int, Suggestion] = {}
        self._told: dict[int, Observation] = {}
        self._given: list[Observation] = []
        #: Observations as JSON text, by identity: they never change, and each save needs them all.
        self._texts: dict[int, tuple[Observation, str]] = {}

    # The pure part

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

    # The ledger

    def ask(self) -> Suggestion:
        """A configuration to try; it is pending until `tell` or `forget`."""
        suggestion = self.propose(self._next, self.history, self.pending)
        self._next += 1
        self._pending[suggestion.number] = suggestion
        return suggestion

    def tell(self, observation: Observation) -> None:
        """Record what came of a suggestion, or of any other configuration (`number=None`).

        Telling a number again replaces what was told. A value that is missing or not finite is a
        failed observation, kept without gradient. Gradient entries that are not finite are ignored.

        **Raises:** `ValueError` naming the key, what was expected and what was received, if the
        configuration or the gradient does not fit the space. Nothing is recorded or lost then:
        the suggestion is still pending.
        """
        config = self.space.validate(observation.config)
        gradient = None
        if observation.gradient is not None and observation.status != "failed":
            flat = self.space.flatten_gradient(config, observation.gradient)
            gradient = {
                path: array.tolist() for path, array in flat.items() if np.isfinite(array).any()
            }
        value = observation.value
        clean = replace(
            observation,
            config=config,
            value=None if value is None or not np.isfinite(value) else float(value),
            gradient=gradient or None,
        )
        number = observation.number
        if number is None:
            self._given.append(clean)
            return
        asked = self._pending.pop(number, None)
        if not clean.note and asked is not None:
            clean = replace(clean, note=asked.note)
        self._told[number] = clean
        self._next = max(self._next, number + 1)

    def warm_start(self, observations: Iterable[Observation]) -> dict[int, str]:
        """Learn from an earlier search, of this space or of one like it.

        What fits the space becomes a point that was not suggested, without the note of the earlier
        searcher; what is known already is not counted twice.

        **Arguments:**

        - `observations`: such as another searcher's `history`, or what
          `strategies.optuna.observations_of` reads from a study. Values are minimised.

        **Returns:** For each observation that was left out, by its position, why: it has a value
        outside its domain, a hyperparameter that this space does not have, or lacks one.
        """
        left_out: dict[int, str] = {}
        for position, item in enumerate(observations):
            given = replace(item, number=None, note={})
            try:
                self.tell(given)
            except ValueError as error:
                left_out[position] = str(error)
                continue
            if self._given[-1] in self._given[:-1]:
                self._given.pop()
                left_out[position] = "it is known already"
        return left_out

    def forget(self, number: int) -> None:
        """Drop a pending suggestion that will never be told; unknown numbers are ignored."""
        self._pending.pop(number, None)

    @property
    def history(self) -> list[Observation]:
        """Everything told, points that were not suggested first, then by number."""
        return [*self._given, *(self._told[number] for number in sorted(self._told))]

    @property
    def pending(self) -> list[Suggestion]:
        """Suggestions that were neither told nor forgotten, by number."""
        return [self._pending[number] for number in sorted(self._pending)]

    @property
    def best(self) -> Observation | None:
        """The complete observation with the smallest value."""
        complete = [item for item in self.history if item.status == "complete"]
        return min(complete, key=lambda item: item.value or 0.0, default=None)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything told and pending as JSON values."""
        return self._head() | {"history": [json.loads(text) for text in self._history_texts()]}

    def _head(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "searcher": type(self).__name__,
            "seed": self.seed,
            "space": self.space.describe(),
            "next": self._next,
            "pending": [
                {
                    "number": item.number,
                    "config": self.space.to_json(item.config),
                    "note": dict(item.note),
                }
                for item in self.pending
            ],
        }

    def _history_texts(self) -> list[str]:
        known = []
        for item in self.history:
            kept = self._texts.get(id(item))
            if kept is None or kept[0] is not item:
                kept = item, json.dumps(observation_to_json(self.space, item))
            known.append(kept)
        self._texts = {id(kept[0]): kept for kept in known}
        return [text for _, text in known]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the ledger by one that `state_dict` gave.

        **Raises:** `ValueError` if it is of another format, searcher, seed or space.
        """
        if state.get("format") != _FORMAT or state.get("version") != _VERSION:
            received = f"{state.get('format')!r} version {state.get('version')!r}"
            raise ValueError(f"state: expected {_FORMAT!r} version {_VERSION}, received {received}")
        for name, expected in [("searcher", type(self).__name__), ("seed", self.seed)]:
            if state[name] != expected:
                raise ValueError(
                    f"state: {name!r}: expected {expected!r}, received {state[name]!r}"
                )
        described = self.space.describe()
        if state["space"] != described:
            for path in {**described, **state["space"]}:
                ours, theirs = described.get(path), state["space"].get(path)
                if ours != theirs:
                    raise ValueError(f"state: space {path!r}: expected {ours}, received {theirs}")
        self._next = state["next"]
        self._pending = {
            item["number"]: Suggestion(
                item["number"], self.space.from_json(item["config"]), item["note"]
            )
            for item in state["pending"]
        }
        self._told, self._given = {}, []
        for item in state["history"]:
            observation = observation_from_json(self.space, item)
            if observation.number is None:
                self._given.append(observation)
            else:
                self._told[observation.number] = observation

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file; the previous one is kept as `path + ".backup"`.

        The file is complete at every moment: it is written under a temporary name and renamed.
        """
        head = json.dumps(self._head())
        write_state(path, f'{head[:-1]}, "history": [{", ".join(self._history_texts())}]}}')

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, from the backup if the file itself is damaged (with a warning).

        **Raises:** `ValueError` if neither can be read, or if they are of another search.
        `FileNotFoundError` if there is neither.
        """
        self.load_state_dict(read_state(path))


def _place(observation: Observation) -> tuple[int, float, str]:
    if observation.number is not None:
        return observation.number, observation.resource or 0.0, ""
    value = observation.value
    return -1, float("inf") if value is None else value, repr(observation.config)
