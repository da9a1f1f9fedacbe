"""The order in which processes that share a study suggest: that of their trials' numbers."""

from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial, TrialState

from strategies.observation import Observation, Suggestion
from strategies.optuna.names import Names
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

    def unheard(self, trials: Sequence[FrozenTrial], current: FrozenTrial) -> list[int]:
        """Identifiers of earlier trials of other processes that have no suggestion yet.

        **Arguments:**

        - `trials`: of the study.
        - `current`: the trial that a suggestion is made for.
        """
        return [
            trial._trial_id
            for trial in trials
            if trial.number < current.number
            and trial.state == TrialState.RUNNING
            and not trial.params
            and SUGGESTION not in trial.system_attrs
            and trial._trial_id not in self._ours
        ]

    def worth_waiting(self, unheard: Sequence[int]) -> bool:
        """Whether one of them has not been given up yet."""
        return not self._silent.issuperset(unheard)

    def give_up(self, unheard: Sequence[int]) -> None:
        """Wait no longer for these, now and in future."""
        self._silent.update(unheard)


def holder(
    names: Names, suggestion: Suggestion, others: Iterable[Observation | Suggestion]
) -> int | None:
    """The smallest number of another trial with the configuration of a suggestion, if any."""
    params = names.to_params(suggestion.config)
    same = {one.number for one in others if names.to_params(one.config) == params}
    numbers = [number for number in same if number is not None and number != suggestion.number]
    return min(numbers, default=None)
