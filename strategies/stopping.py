"""When a search has done enough: total time, total cost, patience, what is left to be gained."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strategies.arguments import integer, positive
from strategies.observation import Observation
from strategies.space import SearchSpace

#: So many estimates in a row must be below `gain`: one may be the luck of a model.
_AGREED = 3

#: Why a search ended before it was through, where no `Stop` has ended it.
INTERRUPTED, ASKED = "it was interrupted", "a callback asked for it"


@dataclass(frozen=True)
class Stop:
    """What ends a search before its trials are used up. Whatever comes first counts.

    No trial is begun any more then; those that run are still recorded.

    **Arguments:**

    - `seconds`: total wall time, of this call.
    - `cost`: total of what the trials cost, those before a restore included: in the unit that they
      report, or in seconds.
    - `patience`: so many trials in a row without a better one; of several objectives, without one
      that is on the front.
    - `gain`: what one more trial is expected to gain is smaller, three times in a row
      (`expected_gain`; in the units of the objective, for one objective). It takes a tenth of a
      second or so after each trial.

    **Raises:** `ValueError` if none is given, or for one that is not above zero.
    """

    seconds: float | None = None
    cost: float | None = None
    patience: int | None = None
    gain: float | None = None

    def __post_init__(self) -> None:
        given = {name: each for name, each in self.__dict__.items() if each is not None}
        if not given:
            raise ValueError("Stop: expected one of 'seconds', 'cost', 'patience', 'gain'")
        for name, each in given.items():
            number = integer(name, each, 1) if name == "patience" else float(positive(name, each))
            object.__setattr__(self, name, number)


class Watch:
    """Checks after each trial whether a search is to end, and remembers why.

    **Arguments:**

    - `stop`: when.
    - `space`: of the search, if it is known yet.
    - `began`: when, on the monotonic clock. Default: now.
    """

    def __init__(self, stop: Stop, space: SearchSpace | None, began: float | None = None) -> None:
        self._stop, self._space = stop, space
        self._began = time.monotonic() if began is None else began
        self._small = 0
        self._looked = -1
        #: The last estimate of what one more trial gains.
        self.gain: float | None = None
        #: Why the search ended, in words.
        self.reason: str | None = None

    def over(
        self,
        history: Sequence[Observation],
        cost: float | None = None,
        *,
        space: SearchSpace | None = None,
    ) -> bool:
        """Whether the search is to begin nothing more.

        **Arguments:**

        - `history`: all observations so far that can be compared, in the order of their numbers.
        - `cost`: of all trials so far. Default: of those in the history.
        - `space`: of the history, where it may change.
        """
        self._space = space or self._space
        if self.reason is None:
            spent = sum(item.cost or 0.0 for item in history) if cost is None else cost
            self.reason = self._over(history, spent)
        return self.reason is not None

    def _over(self, history: Sequence[Observation], cost: float) -> str | None:
        stop = self._stop
        seconds = time.monotonic() - self._began
        if stop.seconds is not None and seconds >= stop.seconds:
            return f"{seconds:.3g} seconds of {stop.seconds:g} are over"
        if stop.cost is not None and cost >= stop.cost:
            return f"a cost of {cost:.4g} of {stop.cost:g} is spent"
        if stop.patience is not None:
            waited = _since_better(history)
            if waited >= stop.patience:
                return f"{waited} trials without a better one"
        return self._converged(history, stop.gain)

    def _converged(self, history: Sequence[Observation], least: float | None) -> str | None:
        if least is None or len(history) == self._looked or self._space is None:
            return None
        from strategies.surrogates.expected_gain import expected_gain

        self._looked = len(history)
        self.gain = expected_gain(self._space, history)
        self._small = self._small + 1 if self.gain is not None and self.gain < least else 0
        if self._small < _AGREED:
            return None
        return f"one more trial is expected to gain {self.gain:.2g}, less than {least:g}"


def _since_better(history: Sequence[Observation]) -> int:
    """How many trials came after the last that was better than all before."""
    best: list[Observation] = []
    waited = 0
    for item in history:
        if item.number is not None:
            waited += 1
        if item.status != "complete" or any(_at_least(other, item) for other in best):
            continue
        best = [other for other in best if not _at_least(item, other)] + [item]
        waited = 0
    return waited


def _at_least(one: Observation, other: Observation) -> bool:
    """Whether one is as good as the other, or better, in every objective."""
    if not (one.feasible and other.feasible):
        return one.violation <= other.violation
    mine, theirs = one.values or (one.value,), other.values or (other.value,)
    return bool(np.all(np.array(mine, float) <= np.array(theirs, float)))
