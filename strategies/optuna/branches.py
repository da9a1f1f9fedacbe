"""The conditions of a define-by-run objective, found in what its trials have asked for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from strategies.optuna.parameters import Coordinate, from_distribution


class Condition(NamedTuple):
    """That a parameter is asked for only where an earlier one has certain values."""

    parent: str
    values: tuple[Any, ...]


class Branches:
    """Which parameters trials have asked for together, and with which values."""

    def __init__(self) -> None:
        #: By the names that a trial has asked for, in this order: the values that each has had.
        self._values: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Take up a trial."""
        values = self._values.setdefault(tuple(trial.params), {})
        for name, distribution in trial.distributions.items():
            if not isinstance(distribution, FloatDistribution):
                value = trial.params[name]
                values.setdefault(name, {}).setdefault(repr(value), value)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters, an earlier one before those that are asked for after it."""
        return tuple(dict.fromkeys(name for asked in self._values for name in asked))

    def condition(self, name: str, parents: Mapping[str, BaseDistribution]) -> Condition | None:
        """The one that explains which trials have a parameter, if there is one.

        The values of its parent with and without the parameter are different ones. Where several
        parents explain it, the one that has had the fewest values does: of many values it is no
        wonder that they are different. Among equals it is the nearest one, since in nested
        conditions the innermost decides.

        **Arguments:**

        - `name`: of a parameter that some trials do not have.
        - `parents`: those that a condition may be on, and their ranges.
        """
        having = [asked for asked in self._values if name in asked]
        found: list[tuple[int, Condition]] = []
        for parent in reversed(having[0][: having[0].index(name)]):
            if parent not in parents or not all(parent in asked for asked in having):
                continue
            present: dict[str, Any] = {}
            absent: dict[str, Any] = {}
            for asked, values in self._values.items():
                (present if name in asked else absent).update(values.get(parent, {}))
            if not present or not absent or present.keys() & absent.keys():
                continue
            if _is_discrete(parents[parent]):
                condition = Condition(parent, tuple(present.values()))
                found.append((len(present) + len(absent), condition))
        return min(found, key=lambda one: one[0])[1] if found else None


def _is_discrete(distribution: BaseDistribution) -> bool:
    """Whether our domain of it is, too: integers by the billion are none."""
    return not isinstance(from_distribution(distribution, ("",), ()), Coordinate)


__all__ = ["Branches", "Condition"]
