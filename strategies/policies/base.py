"""A family of policies: which action in which state, for parameters that a searcher chooses."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from strategies.space import SearchSpace

#: Named numbers that describe the state of a running algorithm.
Features = Mapping[str, float]
Choose = Callable[[Features], Any]


class Policy(ABC):
    """Maps the features of a state to an action; a configuration of `space` picks one such map.

    The features are few and are named, the same for every instance and horizon: a share of the
    budget rather than a count of steps.
    """

    @property
    @abstractmethod
    def space(self) -> SearchSpace:
        """What a searcher tunes."""

    @abstractmethod
    def choose(self, config: Mapping[str, Any], features: Features) -> Any:
        """The action in a state.

        **Raises:** `ValueError` naming a feature that is missing or not finite.
        """

    def at(self, config: Mapping[str, Any]) -> Choose:
        """The policy of a configuration: a function of the features."""
        return lambda features: self.choose(config, features)


def feature(features: Features, name: str) -> float:
    """A feature, checked.

    **Raises:** `ValueError` if it is missing, or not a finite number.
    """
    if not isinstance(features, Mapping):
        raise ValueError(f"'features': expected numbers by name, received {features!r:.80}")
    if name not in features:
        raise ValueError(f"feature {name!r}: expected it among {sorted(map(str, features))}")
    try:
        number = float(np.asarray(features[name]).reshape(()))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"feature {name!r}: expected a finite number, received {features[name]!r:.80}"
        )
    return number


def actions_of(actions: Any, least: int) -> tuple[Any, ...]:
    """A checked list of actions."""
    if isinstance(actions, str) or not hasattr(actions, "__len__") or len(actions) < least:
        raise ValueError(f"'actions': expected at least {least}, received {actions!r:.80}")
    return tuple(actions)
