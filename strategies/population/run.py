"""What the two loops of a population share: what they keep, whom they tell, and how they end."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.arguments import asks_to_stop
from strategies.ledger import Ledger
from strategies.local.results import Result, Trial
from strategies.observation import Observation
from strategies.population import checkpoint
from strategies.population.checkpoint import Stored
from strategies.population.progress import Progress
from strategies.space.point import copied
from strategies.state import save_if_there_is_space
from strategies.stopping import ASKED, INTERRUPTED


@dataclass(frozen=True)
class PopulationResult(Result):
    """What a population found: a `Result`, and the trained state.

    - `best_state`: the state of the member with `best_value`, as it was then. `None` if there is
      none, or if it was found before a restart that no checkpoint has seen.
    """

    best_state: Any


@dataclass(frozen=True)
class Keeping:
    """What a run writes, and whom it tells.

    - `state_path`: file for results.
    - `members_path`: file for the members' states.
    - `checkpoint_seconds`: the least time between two writings of states.
    - `callbacks`: called with each `Trial`; one that returns `True` ends the run.
    - `progress`: called with a `Progress` at each boundary.
    """

    state_path: str | os.PathLike[str] | None
    members_path: str | None
    checkpoint_seconds: float
    callbacks: tuple[Callable[[Trial], bool | None], ...]
    progress: Callable[[Progress], None] | None


class Run(ABC):
    """A run of a population.

    **Arguments:**

    - `seed`: of the members' keys.
    - `keeping`: what is written, and who is told.
    """

    def __init__(self, seed: int, keeping: Keeping) -> None:
        self._seed, self._keeping = seed, keeping
        self._trials: list[Trial] = []
        #: The smallest value, the number of its trial, and its member's state at the time.
        self._best: tuple[float, int] | None = None
        self._best_state: Any = None
        self._stopped = False

    def _work(self) -> str | None:
        """Go on until there is nothing left to do; why it ended before, if it did."""
        self._began = self._written = time.monotonic()
        begun = self._restore()
        try:
            self._loop(begun)
        except KeyboardInterrupt:
            # States may be those of half a step: the file of before keeps what it has.
            self._save_results()
            return INTERRUPTED
        return ASKED if self._stopped else None

    @abstractmethod
    def _restore(self) -> Any:
        """Take over what an earlier run has left; what the loop begins with."""

    @abstractmethod
    def _loop(self, begun: Any) -> None:
        """Train, record, save, tell, until there is nothing left to do or somebody asks to stop."""

    @abstractmethod
    def _keep(self, path: str | os.PathLike[str]) -> None:
        """Write all results."""

    @abstractmethod
    def _members(self) -> tuple[dict[str, Stored], Mapping[str, Any]]:
        """The members' states by name, and a note beside their seed."""

    def _save_results(self) -> None:
        if self._keeping.state_path is not None:
            save_if_there_is_space(self._keep, self._keeping.state_path)

    def _save(self, *, last: bool) -> None:
        """Write results, and states if it is time to; at the last, it is."""
        self._save_results()
        path, now = self._keeping.members_path, time.monotonic()
        if path is None or not (last or now - self._written >= self._keeping.checkpoint_seconds):
            return
        self._written = now
        stored, note = self._members()
        checkpoint.write(path, stored, {"seed": self._seed, **note})

    def _stored_members(self) -> tuple[dict[str, Stored], dict[str, Any]]:
        """What `_members` gave at the last writing, if it was of this seed."""
        assert self._keeping.members_path is not None
        stored, note = checkpoint.read(self._keeping.members_path)
        checkpoint.expect_seed(self._keeping.members_path, note, self._seed)
        return stored, note

    def _tell(self, told: Observation, seconds: float, info: Mapping[str, Any]) -> None:
        """Make an observation a trial, and call the callbacks."""
        trial = Trial(
            number=told.number or 0,
            config=copied(dict(told.config)),
            value=told.value,
            status=told.status,
            seconds=seconds,
            note=told.note,
            info=info,
        )
        self._trials.append(trial)
        answers = [asks_to_stop(callback(trial)) for callback in self._keeping.callbacks]
        self._stopped |= any(answers)

    def _show(self, alive: int, steps: int, best: float | None, left: int | None) -> None:
        """Tell how far this run is: steps that all members have done, and have left to do."""
        if self._keeping.progress is None:
            return
        seconds = time.monotonic() - self._began
        to_go = None if left is None else left * seconds / max(steps, 1)
        self._keeping.progress(Progress(alive, len(self._trials), steps, best, seconds, to_go))

    def _found(
        self, best: Observation | None, history: list[Observation], ledger: Ledger
    ) -> dict[str, Any]:
        """The fields of a `PopulationResult`, but for why it ended."""
        return {
            "best_config": None if best is None else dict(best.config),
            "best_value": None if best is None else best.value,
            "history": history,
            "trials": self._trials,
            "ledger": ledger,
            "best_state": self._best_state,
        }
