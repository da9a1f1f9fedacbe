"""The order in which processes that share a study suggest: that of their trials' numbers."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from strategies.optuna.study_view import SUGGESTION


class OtherProcesses:
    """Whether trials of other processes have what they were started with.

    To look at a study and to store a suggestion are two steps. Two processes that take the first at
    the same time would suggest the same, so each waits until the trials with smaller numbers have
    their suggestions. Those of the own process need no waiting: its sampler holds a lock.
    """

    def __init__(self) -> None:
        self._ours: set[int] = set()
        #: Trials that were waited for in vain: their process died, or does something else first.
        self._silent: set[int] = set()

    def is_ours(self, trial: FrozenTrial) -> None:
        """A trial was started in this process."""
        self._ours.add(trial._trial_id)

    def has_ended(self, trial: FrozenTrial) -> None:
        """A trial has ended in this process."""
        self._ours.discard(trial._trial_id)

    def have_suggested(
        self, trials: Sequence[FrozenTrial], current: FrozenTrial, *, last: bool
    ) -> bool:
        """Whether nobody needs to be waited for.

        **Arguments:**

        - `trials`: of the study.
        - `current`: the trial that a suggestion is made for.
        - `last`: wait no longer, now and in future, for those that are still silent.
        """
        awaited = [
            trial._trial_id
            for trial in trials
            if trial.number < current.number
            and trial.state == TrialState.RUNNING
            and not trial.params
            and SUGGESTION not in trial.system_attrs
            and trial._trial_id not in self._ours
            and trial._trial_id not in self._silent
        ]
        if last:
            self._silent.update(awaited)
        return last or not awaited


__all__ = ["OtherProcesses"]
