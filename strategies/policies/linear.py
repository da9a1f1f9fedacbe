"""A number that is linear in the features, within bounds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from strategies.arguments import finite, positive, switch
from strategies.policies.base import Features, Policy, feature
from strategies.space import Float, SearchSpace

#: Name of the constant term in the space.
_CONSTANT = "constant"


class Linear(Policy):
    """`low + (high - low) z` with `z = constant + Σ weight · feature` kept within [0, 1].

    With `log` it is the logarithm that is so. `space` has a weight for each feature by its name,
    and `constant`.

    **Arguments:**

    - `features`: their names; values of the order of one.
    - `low`, `high`: the range of the action.
    - `log`: in the logarithm (then `low > 0`). Default `False`.
    - `size`: weights are searched within ± this. Default 1: a feature can move the action through
      its whole range.
    """

    def __init__(
        self,
        features: Sequence[str],
        low: float,
        high: float,
        *,
        log: bool = False,
        size: float = 1.0,
    ) -> None:
        named = isinstance(features, Sequence) and all(isinstance(each, str) for each in features)
        if not named or isinstance(features, str) or _CONSTANT in features:
            raise ValueError(
                f"'features': expected names, none of them {_CONSTANT!r}, received {features!r:.80}"
            )
        low, high, log = finite("low", low), finite("high", high), switch("log", log)
        if not low < high or (log and low <= 0):
            expected = "0 < low < high" if log else "low < high"
            raise ValueError(f"'low': expected {expected}, received {low!r} and {high!r}")
        self.features, self.low, self.high, self.log = tuple(features), low, high, log
        size = float(positive("size", size))
        weights = {name: Float(-size, size, default=0.0) for name in self.features}
        self._space = SearchSpace({_CONSTANT: Float(0.0, 1.0, default=0.5), **weights})

    @property
    def space(self) -> SearchSpace:
        """See `Policy.space`."""
        return self._space

    def choose(self, config: Mapping[str, Any], features: Features) -> float:
        """See `Policy.choose`."""
        moved = sum(config[name] * feature(features, name) for name in self.features)
        share = min(max(config[_CONSTANT] + moved, 0.0), 1.0)
        if self.log:
            return math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return self.low + share * (self.high - self.low)
