"""The conditions of a define-by-run objective, found in what its trials have asked for."""

from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from strategies.optuna.parameters import Coordinate, from_distribution


class Condition(NamedTuple):
    """That a parameter is asked for only where an earlier one has certain values."""

    parent: str
    values: tuple[Any, ...]


class Asked(NamedTuple):
    """Parameters that are searched together.

    - `distributions`: by name.
    - `conditions`: of those that only some trials have; a parent's before those of its children.
    """

    distributions: dict[str, BaseDistribution]
    conditions: dict[str, Condition]

    def within(self, names: Container[str]) -> "Asked":
        """Those of these names whose conditions are on these, too."""
        kept = {name for name in self.distributions if name in names}
        for name, condition in self.conditions.items():
            if condition.parent not in kept:
                kept.discard(name)
        return Asked(
            {name: one for name, one in self.distributions.items() if name in kept},
            {name: one for name, one in self.conditions.items() if name in kept},
        )


class Branches:
    """Which parameters trials have asked for together, and with which values."""

    def __init__(self) -> None:
        #: By the names that a trial has asked for, in this order: the values that each has had.
        self._values: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
        #: How many trials there are.
        self.count = 0
        #: By name: how many trials there were before it, and how many have had it.
        self.before: dict[str, int] = {}
        self.having: dict[str, int] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Take up a trial."""
        for name in trial.distributions:
            self.before.setdefault(name, self.count)
            self.having[name] = self.having.get(name, 0) + 1
        self.count += 1
        values = self._values.setdefault(tuple(trial.params), {})
        for name, distribution in trial.distributions.items():
            if not isinstance(distribution, FloatDistribution):
                value = trial.params[name]
                values.setdefault(name, {}).setdefault(repr(value), value)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters, an earlier one before those that are asked for after it."""
        return tuple(dict.fromkeys(name for asked in self._values for name in asked))

    def asked(
        self,
        ranges: Mapping[str, BaseDistribution],
        counts_without: Callable[[str], bool],
    ) -> Asked:
        """Those that all trials have asked for, and those whose absence a condition explains.

        **Arguments:**

        - `ranges`: the parameters that may be among them.
        - `counts_without`: whether one that nothing explains is among them all the same.
        """
        found = Asked({}, {})
        for name in self.names:
            if name not in ranges:
                continue
            if self.having[name] < self.count:
                condition = self.condition(name, found.distributions)
                if condition is not None:
                    found.conditions[name] = condition
                elif not counts_without(name):
                    continue
            found.distributions[name] = ranges[name]
        return found

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
