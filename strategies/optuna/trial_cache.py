"""The trials of a study, without a look at its storage as long as nothing can be new there."""

from collections.abc import Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial


class TrialCache:
    """What a storage would answer, which takes milliseconds on a database.

    The trials of a study are numbered without gaps. If all before the current one have ended in
    this process, there is no other: no process but this one has worked on the study since the last
    look. Each of them is fetched by itself, once, as the storage has it: those that Optuna keeps in
    memory cost nothing, and one that could not be stored is not taken for finished.

    Not for several threads at once: its owner holds a lock.
    """

    def __init__(self) -> None:
        self._study: Study | None = None
        self._latest = -1
        self._finished: dict[int, FrozenTrial] = {}
        #: Those without a gap from the first on, once the storage need not be read.
        self._past: list[FrozenTrial] = []
        #: Identifiers of what has ended since the last call, by number.
        self._ended: dict[int, int] = {}

    def ended(self, study: Study, trial: FrozenTrial) -> None:
        """A trial of the study has ended in this process; its result may not be stored yet."""
        if study is self._study:
            self._ended[trial.number] = trial._trial_id

    def trials(self, study: Study, current: FrozenTrial) -> Sequence[FrozenTrial]:
        """The trials of a study in the order of their numbers.

        Those that came after the current one, and the current one itself, may be among them. While
        nothing is read the list remains the same object and grows by finished trials.

        **Arguments:**

        - `study`: the same object as before, or all is read anew.
        - `current`: the trial that a suggestion is made for.
        """
        if study is self._study and self._complete(study, current.number):
            trials = self._past
            trials += (self._finished[number] for number in range(len(trials), current.number))
        else:
            trials = list(study.get_trials(deepcopy=False))
            self._study = study
            self._latest = max((trial.number for trial in trials), default=-1)
            self._finished = {trial.number: trial for trial in trials if trial.state.is_finished()}
            self._past = []
        self._ended = {}
        self._latest = max(self._latest, current.number)
        return trials

    def _complete(self, study: Study, number: int) -> bool:
        """Whether all trials before this one are known, and it is the newest."""
        if self._latest > number or len(self._finished) + len(self._ended) != number:
            return False
        for ended, trial_id in self._ended.items():
            trial = study._storage.get_trial(trial_id)
            if not trial.state.is_finished():
                return False
            self._finished[ended] = trial
        return True
