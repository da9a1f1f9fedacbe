"""The trials of a search: a ledger to ask and to tell, and a file in which nothing gets lost.

The only place of this engine that keeps a searcher's ledger.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from strategies.ledger import Ledger
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.state import exclusive_lock, reading, seal, unseal, whole_line

_FORMAT = "hypergrad sklearn search, version 2"


@dataclass(frozen=True)
class Trial:
    """One evaluated configuration, in JSON values.

    - `stage`, `number`: which search, and the suggestion's position there.
    - `config`: of the searched space.
    - `value`: of the criterion, minimised; `None` if the trial failed.
    - `gradient`: by path of the space.
    - `folds`: the criterion of every fold.
    - `residual`: of the inner problem.
    - `seconds`: wall time.
    - `note`: the searcher's.
    - `error`: why the trial failed.
    """

    stage: str
    number: int
    config: dict[str, Any]
    value: float | None
    gradient: dict[str, Any] = field(default_factory=dict)
    folds: list[float] = field(default_factory=list)
    residual: float | None = None
    seconds: float = 0.0
    note: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def of(self) -> tuple[str, int]:
        """Which trial it is."""
        return self.stage, self.number


class Journal:
    """Trials and scikit-learn's fits, a JSON line each with its checksum, on disk at once.

    **Arguments:**

    - `path`: the file; `None` keeps nothing.
    - `identity`: of the search: its estimator, space, data and splits.

    **Raises:** `ValueError` if the file is of another search, or is no such file.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str):
        self.path = None if path is None else os.fspath(path)
        self.trials: list[Trial] = []
        self.fits: list[dict[str, Any]] = []
        if self.path is None:
            return
        if os.path.exists(self.path) and os.path.getsize(self.path):
            self._read(identity)
        else:
            self._write({"format": _FORMAT, "identity": identity})

    def _read(self, identity: str) -> None:
        assert self.path is not None
        with open(self.path, "rb") as file:
            content = file.read()
        *lines, rest = content.split(b"\n")
        # A kill may leave a last line that is not whole.
        last = whole_line(rest)
        lines += last
        head, *found = [self._line(number, line) for number, line in enumerate(lines, 1)] or [{}]
        if head.get("format") != _FORMAT or "identity" not in head:
            raise ValueError(f"'resume': expected a file of {_FORMAT}, received {self.path}")
        if head["identity"] != identity:
            raise ValueError(
                f"'resume': expected a file of this search, received {self.path}, whose estimator, "
                "space, data, weights, splits or scoring differ"
            )
        if rest:
            with open(self.path, "r+b") as file:
                file.seek(len(content) - len(rest))
                file.writelines(line + b"\n" for line in last)
                file.truncate()
        self.trials = [line["trial"] for line in found if "trial" in line]
        self.fits = [line["fit"] for line in found if "fit" in line]

    def _line(self, number: int, content: bytes) -> dict[str, Any]:
        """The head, a trial or a fit, each under its name."""
        try:
            with reading():
                line = unseal(content)
                return {**line, "trial": Trial(**line["trial"])} if "trial" in line else line
        except ValueError as error:
            raise ValueError(
                f"'resume': expected whole lines in {self.path}, but line {number} is damaged "
                f"({error}); without that line, what it held is done again"
            ) from None

    def add_trial(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials.append(trial)
        self._write({"trial": asdict(trial)})

    def add_fit(self, fit: dict[str, Any]) -> None:
        """Keep what scikit-learn found of a candidate on all folds."""
        self.fits.append(fit)
        self._write({"fit": fit})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(seal(json.dumps(line, default=_plain)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


@contextlib.contextmanager
def journal(path: str | os.PathLike[str] | None, identity: str) -> Iterator[Journal]:
    """The journal of a search, held alone."""
    with exclusive_lock(path):
        yield Journal(path, identity)


class Stage:
    """One search of a space; what the journal knows of it is told again.

    **Arguments:**

    - `name`: of the stage.
    - `searcher`: proposes.
    - `journal`: where trials are kept.
    """

    def __init__(self, name: str, searcher: Searcher, journal: Journal):
        self.name, self.journal = name, journal
        self.ledger = Ledger(searcher)
        self.trials: list[Trial] = []
        #: Trials before the last start that was given.
        self.since = 0
        for trial in journal.trials:
            if trial.stage == name:
                self._tell(trial)

    def ask(self) -> Suggestion:
        """The configuration to try next."""
        return self.ledger.ask()

    def finish(self, trial: Trial) -> None:
        """Keep a trial, then let the searcher know."""
        self.journal.add_trial(trial)
        self._tell(trial)

    def start_at(self, trial: Trial, config: Mapping[str, Any], since: int) -> None:
        """Let the searcher begin at another stage's trial, which is `config` in its space.

        So many of this stage's trials came before.
        """
        self.since = since
        self.ledger.tell(
            Observation(
                config=config,
                value=trial.value,
                gradient=trial.gradient or None,
            )
        )

    def _tell(self, trial: Trial) -> None:
        self.trials.append(trial)
        domains = self.ledger.space.domains
        # Where groups share a number, its derivative is the sum of theirs.
        gradient = {
            path: part if getattr(domains[path], "shape", ()) else float(np.sum(part))
            for path, part in trial.gradient.items()
        }
        self.ledger.tell(
            Observation(
                config=trial.config,
                value=trial.value,
                gradient=gradient or None,
                cost=trial.seconds,
                number=trial.number,
                note=trial.note,
            )
        )

    @property
    def recent(self) -> list[Observation]:
        """What the searcher was told since the last start that was given, with that start."""
        known = self.ledger.history
        start = [item for item in known if item.number is None]
        return [*start, *[item for item in known if item.number is not None][self.since :]]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the smallest value."""
        complete = [trial for trial in self.trials if trial.value is not None]
        return min(complete, key=lambda trial: trial.value or 0.0, default=None)
