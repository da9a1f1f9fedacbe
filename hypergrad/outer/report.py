"""What a run tells while it lasts: history rows, reports to callbacks, a line of progress."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from hypergrad.outer.base import OuterState

Row = dict[str, float | int | bool]


@dataclass(frozen=True)
class StepReport:
    """What a callback is given after each evaluation.

    - `step`, `steps`: outer steps taken, and asked for.
    - `row`: the last row of the history.
    - `state`: the algorithm's state.
    - `seconds`, `seconds_left`: wall-clock time spent, and an estimate of what is left.
    """

    step: int
    steps: int
    row: Row
    state: OuterState
    seconds: float
    seconds_left: float


Callback = Callable[[StepReport], bool | None]


@dataclass
class Progress:
    """A callback that prints step, outer loss, hypergradient norm, error estimate, time left.

    **Arguments:**

    - `stream`: where to; the standard error stream by default. On a terminal the line is rewritten
      in place.
    - `every`: seconds between two lines where they cannot be rewritten. Default 5.
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 5.0
    _last: float = field(default=-math.inf, init=False, repr=False)

    def __call__(self, report: StepReport) -> None:
        """Print the line."""
        row, last = report.row, report.step >= report.steps
        text = (
            f"step {report.step}/{report.steps}  outer loss {row['validation']:.6g}  "
            f"|hypergradient| {row['hypergradient_norm']:.3g}  error {row['error']:.2g}  "
            f"{report.seconds_left:.0f} s left"
        )
        if self.stream.isatty():
            self.stream.write(f"\r{text:<100}" + ("\n" if last else ""))
            self.stream.flush()
        elif last or time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self.stream.write(text + "\n")
