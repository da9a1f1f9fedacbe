"""What a define-by-run objective asks for, as far as its trials tell."""

from collections.abc import Sequence

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

#: A parameter that came later counts once so many trials have asked for it, without exception;
#: earlier trials are lost to the search then, so it must be in at least half of them, too.
_SETTLED = 10


class SharedParameters:
    """The parameters that all trials since their first have asked for.

    A range that has changed is what the newest trial says. Complete and pruned trials count, if
    they have asked for anything.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._trials: Sequence[FrozenTrial] = ()
        self._seen = 0
        self._counted = 0
        #: By name: how many trials there were before it, how many had it, and its newest range.
        self._before: dict[str, int] = {}
        self._having: dict[str, int] = {}
        self._newest: dict[str, BaseDistribution] = {}

    def of(self, trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
        """Names and distributions of those that are worth to be searched together.

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
            for name, distribution in trial.distributions.items():
                self._before.setdefault(name, self._counted)
                self._having[name] = self._having.get(name, 0) + 1
                self._newest[name] = distribution
            self._counted += 1
        self._seen = len(trials)
        return {
            name: self._newest[name]
            for name in sorted(self._newest)
            if self._is_shared(name) and not self._newest[name].single()
        }

    def _is_shared(self, name: str) -> bool:
        before, having = self._before[name], self._having[name]
        if before + having < self._counted:
            return False
        return before == 0 or (having >= _SETTLED and having >= before)


__all__ = ["SharedParameters"]
