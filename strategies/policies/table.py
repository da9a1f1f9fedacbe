"""An action for each cell of a grid over the features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from strategies.arguments import finite, integer, mapping, several
from strategies.policies.base import Features, Policy, actions_of, feature
from strategies.space import Ordinal, SearchSpace

#: Cells that a searcher can still fill.
_CELLS = 1000


def _range(name: Any, given: Any) -> tuple[float, float, Any]:
    what = "(low, high, cells)"
    parts = several(f"{name}", given, what)
    if len(parts) != 3:
        raise ValueError(f"{name!r}: expected {what}, received {given!r:.80}")
    return finite(f"{name} low", parts[0]), finite(f"{name} high", parts[1]), parts[2]


class Table(Policy):
    """A grid over one or a few features, with an action of its own in each cell.

    `space` has a hyperparameter `cell0`, `cell1`, ... for each cell, the last feature fastest.
    Features beyond their range belong to the outermost cells.

    **Arguments:**

    - `features`: `(low, high, cells)` for each feature by its name: equal parts of the range.
    - `actions`: at least two, in an order in which neighbours are alike.
    """

    def __init__(
        self, features: Mapping[str, tuple[float, float, int]], actions: Sequence[Any]
    ) -> None:
        self.actions = actions_of(actions, 2)
        self.features = {}
        what = "(low, high, cells) by the names of features"
        for name, given in mapping("features", features, what).items():
            low, high, cells = _range(name, given)
            if not low < high:
                raise ValueError(f"{name!r}: expected low < high, received {low!r} and {high!r}")
            self.features[name] = (float(low), float(high), integer(f"{name} cells", cells, 1))
        count = math.prod(cells for *_, cells in self.features.values())
        if not self.features or count > _CELLS:
            raise ValueError(f"'features': expected 1 to {_CELLS} cells, received {count}")
        self._space = SearchSpace({f"cell{i}": Ordinal(self.actions) for i in range(count)})

    @property
    def space(self) -> SearchSpace:
        """See `Policy.space`."""
        return self._space

    def choose(self, config: Mapping[str, Any], features: Features) -> Any:
        """See `Policy.choose`."""
        index = 0
        for name, (low, high, cells) in self.features.items():
            place = (feature(features, name) - low) / (high - low)
            index = index * cells + min(max(int(place * cells), 0), cells - 1)
        return config[f"cell{index}"]
