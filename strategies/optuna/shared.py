"""What a define-by-run objective asks for, as far as its trials tell."""

from collections.abc import Sequence

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from strategies.optuna.branches import Asked, Branches

#: A parameter that came later, and that no condition explains, counts once so many trials have
#: asked for it without exception; earlier trials are lost to the search then, so it must be in at
#: least half of them, too.
_SETTLED = 10


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
        self._branches = Branches()
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
            if ended and trial.distributions:
                self._branches.add(trial)
                self._newest |= trial.distributions
        self._seen = len(trials)
        ranges = {name: one for name, one in self._newest.items() if not one.single()}
        found = self._branches.asked(ranges, self._is_settled)
        return Asked(dict(sorted(found.distributions.items())), found.conditions)

    def _is_settled(self, name: str) -> bool:
        before, having = self._branches.before[name], self._branches.having[name]
        return before + having == self._branches.count and having >= max(_SETTLED, before)
