"""Actions one after the other, as a feature passes thresholds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from strategies.policies.base import Features, Policy, actions_of, feature
from strategies.space import Ordered, SearchSpace


class Thresholds(Policy):
    """The first action below the first threshold, the next one up to the second, and so on.

    `space` has one hyperparameter, `thresholds`: one number fewer than actions, in order.

    **Arguments:**

    - `name`: of the feature.
    - `actions`: at least two, in the order in which they come as the feature grows.
    - `low`, `high`: the range of the thresholds. Default 0 and 1.
    """

    def __init__(
        self, name: str, actions: Sequence[Any], *, low: float = 0.0, high: float = 1.0
    ) -> None:
        self.name, self.actions = name, actions_of(actions, 2)
        self._space = SearchSpace({"thresholds": Ordered(low, high, len(self.actions) - 1)})

    @property
    def space(self) -> SearchSpace:
        """See `Policy.space`."""
        return self._space

    def choose(self, config: Mapping[str, Any], features: Features) -> Any:
        """See `Policy.choose`."""
        at = np.searchsorted(config["thresholds"], feature(features, self.name), side="right")
        return self.actions[int(at)]
