"""What a terminal shows while a search runs: trials, incumbent, failures, time left."""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from strategies.front import front
from strategies.observation import Observation
from strategies.stopping import Watch

#: Columns of the plain line; what it does not need is blank, so that a longer one is gone.
_WIDTH = 78


class Told(Protocol):
    """A ledger, or what of one belongs to a task."""

    @property
    def trials(self) -> int:
        """How many suggestions were told."""

    @property
    def history(self) -> list[Observation]:
        """Everything told."""

    @property
    def best(self) -> Observation | None:
        """The best of it."""


@contextmanager
def shown(
    progress: bool | None, ledger: Told, total: int | None, watch: Watch | None = None
) -> Iterator[tuple[Callable, ...]]:
    """The callbacks of a search that shows its progress on the standard error stream.

    **Arguments:**

    - `progress`: whether; with `None` where that stream is a terminal.
    - `ledger`: of the search, or what of it is the task's, with the trials restored.
    - `total`: number of trials to reach, if there is one.
    - `watch`: what may end the search before; its estimate of what is left to be gained is shown.
    """
    reached = total is not None and ledger.trials >= total
    if not (sys.stderr.isatty() if progress is None else progress) or reached:
        yield ()
        return
    start, before = time.monotonic(), ledger.trials

    def state() -> tuple[int, str]:
        done = ledger.trials
        words = []
        history = ledger.history
        if any(item.values for item in history):
            words.append(f"{len(front(history))} on the front")
        elif (best := ledger.best) is not None:
            words.append(f"best {best.value:.6g}" if best.feasible else "best infeasible")
        if any(item.constraints for item in history):
            words.append(f"{sum(item.feasible for item in history)} feasible")
        if failed := sum(item.status == "failed" for item in history):
            words.append(f"{failed} failed")
        if watch is not None and watch.gain is not None:
            words.append(f"gain {watch.gain:.2g} expected")
        if done > before and total is not None:
            seconds = (time.monotonic() - start) / (done - before) * max(total - done, 0)
            words.append(f"{_duration(seconds)} left")
        return done, "  ".join(words)

    with _display(sys.stderr, total) as show:
        show(*state())
        yield (lambda trial: show(*state()),)


@contextmanager
def _display(stream: TextIO, total: int | None) -> Iterator[Callable[[int, str], None]]:
    """A bar of rich where that is installed and the stream a terminal, a line otherwise."""
    if not (stream.isatty() and importlib.util.find_spec("rich")):
        with _line(stream, total) as show:
            yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns: tuple[Any, ...] = (
        TextColumn("trials"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


@contextmanager
def _line(stream: TextIO, total: int | None) -> Iterator[Callable[[int, str], None]]:
    # On a terminal the line is written over; a file has a line for each tenth.
    over, every, last = stream.isatty(), max((total or 100) // 10, 1), -math.inf

    def show(done: int, text: str) -> None:
        nonlocal last
        line = f"trial {done}  {text}" if total is None else f"trial {done}/{total}  {text}"
        if over:
            stream.write(f"\r{line:<{_WIDTH}}")
        elif done - last >= every or (total is not None and done >= total):
            last = done
            stream.write(line.rstrip() + "\n")
        stream.flush()

    try:
        yield show
    finally:
        if over:
            stream.write("\n")
            stream.flush()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
