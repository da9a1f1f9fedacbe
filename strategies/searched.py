"""What a search has seen, whoever ran it: the common form behind importance, plots and pages."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from strategies.observation import Observation
from strategies.space import Categorical, SearchSpace

#: Results at a resource are compared with each other if there are so many, as in BOHB.
_ENOUGH = 4


@dataclass(frozen=True)
class Searched:
    """A space and what was observed in it. Build one with `searched`.

    - `space`: where the search was.
    - `history`: every observation, checked, in the order in which the search lists them.
    """

    space: SearchSpace
    history: tuple[Observation, ...]

    @functools.cached_property
    def complete(self) -> tuple[Observation, ...]:
        """The complete observations that can be compared: those of one resource.

        The largest resource at which there are four; all, if there is no such resource.
        """
        complete = [item for item in self.history if item.status == "complete"]
        for level in sorted({o.resource for o in complete if o.resource is not None}, reverse=True):
            chosen = [item for item in complete if item.resource == level]
            if len(chosen) >= _ENOUGH:
                return tuple(chosen)
        return tuple(complete)

    @property
    def best(self) -> Observation | None:
        """The complete, comparable observation with the smallest value, feasible if any is."""
        return self.complete[self.ranking[0]] if self.complete else None

    @functools.cached_property
    def ranking(self) -> np.ndarray:
        """The rows of `complete`, the best first, feasible before infeasible."""
        rows = range(len(self.complete))
        return np.array(sorted(rows, key=lambda row: self.complete[row].rank), int)

    @functools.cached_property
    def values(self) -> np.ndarray:
        """Values of `complete`, shape `(n,)`."""
        return np.array([item.value for item in self.complete], float)

    @functools.cached_property
    def units(self) -> np.ndarray:
        """Unit coordinates of `complete`, shape `(n, dimension)`."""
        return np.array([item.unit for item in self.complete]).reshape(-1, self.space.dimension)

    @functools.cached_property
    def slopes(self) -> np.ndarray:
        """Gradients of `complete` in unit coordinates, shape `(n, dimension)`.

        NaN where nothing was reported, zero for a hyperparameter that a configuration does not
        have: the value does not depend on it there.
        """
        found = np.full(self.units.shape, np.nan)
        for row, item in zip(found, self.complete, strict=True):
            if item.slope is not None:
                row[:] = item.slope
                assert item.point is not None
                row[~self.space.active_mask(item.point)] = 0.0
        return found

    def narrowed(self) -> "Searched":
        """The same without most of those choices that no trial had, of hundreds of them.

        A process knows of each of them as much as of all others; see `surrogates.narrowed`.
        """
        # Of this method alone.
        from strategies.surrogates.narrowed import narrowed

        space = narrowed(self.space, self.history, np.random.default_rng(0))
        return self if space is self.space else searched(self.history, space)

    def groups(self, *, entries: bool = False) -> dict[str, np.ndarray]:
        """The unit coordinates of each hyperparameter that has any, by its path.

        **Arguments:**

        - `entries`: each entry of an array by itself, as `"l2[0]"`.
        """
        found: dict[str, np.ndarray] = {}
        for path, where in self.space.slices.items():
            domain = self.space.domains[path]
            coordinates = np.arange(where.start, where.stop)
            if not domain.size:
                continue
            if entries and domain.size > 1 and not isinstance(domain, Categorical):
                index = np.ndindex(getattr(domain, "shape", (domain.size,)))
                for at, coordinate in zip(index, coordinates, strict=True):
                    found[path + "".join(f"[{i}]" for i in at)] = coordinate[None]
            else:
                found[path] = coordinates
        return found


def searched(source: Any, space: SearchSpace | Mapping[str, Any] | None = None) -> Searched:
    """What any search of ours, a study of Optuna or a list of observations has seen.

    **Arguments:**

    - `source`: a result of `minimize`, a `Ledger` or whatever has one (such as
      `strategies.ray.HypergradSearch` and a fitted `HypergradSearchCV`), a scheduler, an
      `optuna.Study`, a `ResultGrid` of Ray, or observations.
    - `space`: of the observations, of a study, or of a grid, which needs it: the `param_space` will
      do. Default: that of the source; for a study the one that its trials have searched.

    **Raises:** `ValueError` for anything else, for observations without a space, and for an
    observation that is not in the space.
    """
    if isinstance(source, Searched):
        return source
    if hasattr(source, "get_best_result") and hasattr(source, "num_errors"):
        if space is None:
            raise ValueError(
                "'space': expected that of the grid, or its 'param_space', received nothing"
            )
        from strategies.ray.grid import seen_by

        return seen_by(source, space)
    if isinstance(space, Mapping):
        space = SearchSpace(space)
    history: Any
    if hasattr(source, "get_trials"):
        from strategies.optuna.history import names_of, seen_in
        from strategies.optuna.names import Names

        names = names_of(source) if space is None else Names(space)
        if names is None:
            raise ValueError("'source': expected a study with a complete trial, received none")
        space, history = names.space, seen_in(source, names)
    elif hasattr(source, "candidates") and hasattr(source, "searcher"):
        space, history = source.searcher.space, source.everything()
    else:
        ledger = getattr(source, "ledger", getattr(source, "ledger_", source))
        space = getattr(ledger, "space", space)
        history = getattr(ledger, "history", source)
    if not isinstance(history, Iterable) or isinstance(history, str):
        raise ValueError(
            "'source': expected a result, a ledger, a scheduler, a study or observations, "
            f"received {source!r:.80}"
        )
    history = list(history)
    if any(not isinstance(item, Observation) for item in history):
        raise ValueError(f"'source': expected observations, received {history[0]!r:.80}")
    if not isinstance(space, SearchSpace):
        raise ValueError(f"'space': expected the space of the observations, received {space!r:.80}")
    return Searched(space, tuple(_located(item, space) for item in history))


def _located(item: Observation, space: SearchSpace) -> Observation:
    if item.point is not None and item.point.space is space:
        return item
    point = space.point(item.config)
    return replace(item, config=point.config, point=point)


__all__ = ["Searched", "searched"]
