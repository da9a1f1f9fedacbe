"""Grid search, for small spaces and for comparison."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import Categorical, Int, Ordinal, SearchSpace
from strategies.space.combinations import combinations

_LIMIT = 1_000_000


class GridSearcher(Searcher):
    """Every combination of some values of every hyperparameter, in an order shuffled by the seed.

    Inactive hyperparameters do not multiply the grid, and combinations that break a constraint are
    left out. When all have been suggested, draws from the prior follow.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `points`: number of values, evenly spaced in the unit coordinate from bound to bound, for
      what has more than that; either for all, or a mapping from paths to a number or to a list of
      values. An array-valued hyperparameter needs a list of its values.

    **Raises:** `ValueError` if the grid has more than a million configurations, or an array-valued
    hyperparameter has no list.

    `size` is the number of configurations.
    """

    several_objectives = True

    def __init__(
        self,
        space: SearchSpace,
        *,
        points: int | Mapping[str, Any] = 5,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
    ):
        super().__init__(space, seed=seed, first=first)
        given = points if isinstance(points, Mapping) else dict.fromkeys(self.space.domains, points)
        for path in given:
            if path not in self.space.domains:
                raise ValueError(
                    f"'points': expected keys of {list(self.space.domains)}, received {path!r}"
                )
        self.values = {path: self._values(path, given.get(path, 5)) for path in self.space.domains}
        every = combinations(self.space, self.values.__getitem__)
        self._grid = list(itertools.islice(every, _LIMIT + 1))
        if len(self._grid) > _LIMIT:
            raise ValueError(f"'points': expected at most {_LIMIT} combinations, received more")
        self._order = np.random.default_rng(self.seed).permutation(len(self._grid))

    @property
    def size(self) -> int:
        """Number of configurations in the grid."""
        return len(self._grid)

    def _values(self, path: str, points: Any) -> list[Any]:
        domain = self.space.domains[path]
        if isinstance(points, Sequence | np.ndarray) and not isinstance(points, str):
            return [domain.check(value, path) for value in points]
        whole = isinstance(points, int | np.integer) and not isinstance(points, bool)
        if not whole or not 0 < points <= _LIMIT:
            raise ValueError(
                f"'points': expected an integer from 1 to {_LIMIT} or a list for {path!r}, "
                f"received {points!r:.80}"
            )
        few = isinstance(domain, Ordinal | Int) and domain.count <= points
        if few or isinstance(domain, Categorical):
            return list(domain.every())
        if domain.size > 1:
            raise ValueError(
                f"'points': expected a list of values for the array {path!r}, received {points!r}"
            )
        low, high = (domain.encode(domain.decode(np.full(domain.size, end))) for end in (0.0, 1.0))
        places = np.linspace(low, high, points) if points > 1 else [(low + high) / 2]
        found = [domain.decode(place) for place in places]
        return [value for i, value in enumerate(found) if value not in found[:i]]

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        place = number - len(self.first)
        if place >= self.size:
            return Suggestion(number, self.space.sample(self.rng(number)))
        return Suggestion(number, self._grid[self._order[place]], {"grid": place})
