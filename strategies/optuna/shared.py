"""What a define-by-run objective asks for, as far as its trials tell."""

from collections.abc import Container, Sequence
from typing import NamedTuple

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from strategies.optuna.branches import Branches, Condition

#: A parameter that came later, and that no condition explains, counts once so many trials have
#: asked for it without exception; earlier trials are lost to the search then, so it must be in at
#: least half of them, too.
_SETTLED = 10


class Asked(NamedTuple):
    """Parameters that are searched together.

    - `distributions`: by name, each with more than one value.
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


class SharedParameters:
    """The parameters that trials ask for: all of them, or those that meet a condition.

    What no condition explains counts if all trials since its first have asked for it. A range that
    has changed is what the newest trial says. Complete and pruned trials count, if they have asked
    for anything.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._trials: Sequence[FrozenTrial] = ()
        self._seen = 0
        self._counted = 0
        self._branches = Branches()
        #: By name: how many trials there were before it, how many had it, and its newest range.
        self._before: dict[str, int] = {}
        self._having: dict[str, int] = {}
        self._newest: dict[str, BaseDistribution] = {}

    def of(self, trials: Sequence[FrozenTrial]) -> Asked:
        """Those that are worth to be searched together.

        **Arguments:**

        - `trials`: of a study. If they are the same object as before they have only grown, by
          finished trials, and are taken up where they ended.
        """
        if self._trials is not trials:
            self._forget()
            self._trials = trials
        for trial in trials[self._seen :]:
            ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            if not (ended and trial.distributions):
                continue
            self._branches.add(trial)
            for name, distribution in trial.distributions.items():
                self._before.setdefault(name, self._counted)
                self._having[name] = self._having.get(name, 0) + 1
                self._newest[name] = distribution
            self._counted += 1
        self._seen = len(trials)
        found = Asked({}, {})
        for name in self._branches.names:
            if self._newest[name].single():
                continue
            if self._having[name] < self._counted:
                condition = self._branches.condition(name, found.distributions)
                if condition is not None:
                    found.conditions[name] = condition
                elif not self._is_settled(name):
                    continue
            found.distributions[name] = self._newest[name]
        return Asked({n: found.distributions[n] for n in sorted(found.distributions)}, found[1])

    def _is_settled(self, name: str) -> bool:
        before, having = self._before[name], self._having[name]
        return before + having == self._counted and having >= max(_SETTLED, before)


__all__ = ["Asked", "SharedParameters"]
