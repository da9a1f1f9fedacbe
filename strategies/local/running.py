"""Calls that run in threads or in an executor, and what came of each."""

import contextlib
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from strategies.local.pools import pool_like

#: Seconds between two polls of a call that waits for a worker: its time has not begun.
_POLL = 0.05


class Numbered(Protocol):
    """What is evaluated, a suggestion or a job."""

    @property
    def number(self) -> int:
        """Results that come together are recorded in this order."""


T = TypeVar("T", bound=Numbered)


@dataclass(frozen=True)
class Lost:
    """In place of a result that will not come: why, and after how many seconds."""

    error: BaseException
    seconds: float

    @property
    def is_death(self) -> bool:
        """Whether the process that was working on it, or on another, has died."""
        return isinstance(self.error, BrokenExecutor)


@dataclass(frozen=True)
class Raised:
    """In place of a result: what a call has raised, which ends the search."""

    error: BaseException


class Threads(Executor):
    """A thread for each call. They are daemons: one that hangs does not keep the process alive."""

    def __init__(self, workers: int) -> None:
        self._max_workers = workers

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`; at once, whatever else is running."""
        future: Future[Any] = Future()

        def call() -> None:
            try:
                found = function(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(found)

        future.set_running_or_notify_cancel()
        threading.Thread(target=call, daemon=True).start()
        return future


@dataclass
class _Call(Generic[T]):
    """A call, and since when it runs; its task is `None` once it was given up."""

    task: T | None
    stamp: str | None = None
    since: float | None = None


class Running(Generic[T]):
    """What is being evaluated, and since when.

    **Arguments:**

    - `executor`: evaluates.
    - `timeout`: seconds after which a call is given up; it is left alone, and its result is ignored
      if it comes after all. Default: never. The time of a call begins when a worker begins with it,
      which may be held by one that was given up.
    """

    def __init__(self, executor: Executor, timeout: float | None = None) -> None:
        self._executor = executor
        self._timeout = timeout
        self._own = False
        self._calls: dict[Future[Any], _Call[T]] = {}
        self._warned = False
        # Pools of processes call running what is only in their queue, so workers leave a stamp.
        stamps = timeout is not None and not isinstance(executor, Threads | ThreadPoolExecutor)
        self._stamps = tempfile.TemporaryDirectory() if stamps else None
        self._trace: str | None = None
        self._first: Future[Any] | None = None
        if self._stamps is not None:
            # Workers on other machines may not see our folder: one call finds that out.
            self._trace = os.path.join(self._stamps.name, "first")
            with contextlib.suppress(BrokenExecutor):
                self._first = executor.submit(_stamped, self._trace, int)

    def __len__(self) -> int:
        return sum(call.task is not None for call in self._calls.values())

    def start(self, task: T, function: Callable[..., Any], *args: Any) -> bool:
        """Evaluate `function(*args)` for a task.

        Returns whether it began: it does not if the pool has died while others are running.
        """
        call = _Call(task)
        if self._stamps is not None:
            call.stamp = os.path.join(self._stamps.name, str(task.number))
            function, args = _stamped, (call.stamp, function, *args)
        try:
            future = self._executor.submit(function, *args)
        except BrokenExecutor as error:
            if len(self):
                return False
            self.renew(error)
            future = self._executor.submit(function, *args)
        self._calls[future] = call
        return True

    def finished(self) -> list[tuple[T, Any]]:
        """Wait for at least one, and take all that have ended, each with what came of it.

        That is its result, a `Lost`, or what it raised.
        """
        while True:
            now = time.monotonic()
            ended: list[tuple[T, Any]] = []
            for future, call in list(self._calls.items()):
                if call.since is None and self._has_begun(future, call):
                    call.since = now
                seconds = 0.0 if call.since is None else now - call.since
                if future.done():
                    del self._calls[future]
                    if call.task is not None:
                        ended.append((call.task, _outcome(future, seconds)))
                elif call.task is not None and self._timeout and seconds >= self._timeout:
                    error = TimeoutError(f"no result after {self._timeout} seconds")
                    ended.append((call.task, Lost(error, self._timeout)))
                    call.task = None
            deaths = [found for _, found in ended if isinstance(found, Lost) and found.is_death]
            if deaths and self._calls:
                # A pool dies as a whole, but its calls end one after the other.
                wait(self._calls)
                return ended + self.finished()
            if ended:
                return ended
            wait(self._calls, timeout=self._patience(now), return_when=FIRST_COMPLETED)

    def _has_begun(self, future: Future[Any], call: _Call[T]) -> bool:
        if call.stamp is None or self._leaves_no_trace():
            return future.running()
        return os.path.exists(call.stamp)

    def _leaves_no_trace(self) -> bool:
        first, trace = self._first, self._trace
        if first is None or trace is None or not first.done() or os.path.exists(trace):
            return False
        return not first.cancelled() and first.exception() is None

    def _patience(self, now: float) -> float | None:
        """Seconds until something may have to be given up."""
        if self._timeout is None:
            return None
        waiting = [call for call in self._calls.values() if call.task is not None]
        if not self._warned and all(call.since is None for call in waiting):
            held = len(self._calls) - len(waiting)
            if held >= getattr(self._executor, "_max_workers", 1):
                self._warned = True
                warnings.warn(
                    f"all {held} workers are held by trials that were given up; the next one "
                    "begins when a worker is free",
                    stacklevel=5,
                )
        return min(
            min(_POLL, self._timeout) if call.since is None else call.since + self._timeout - now
            for call in waiting
        )

    def ended(self) -> list[tuple[T, Any]]:
        """What has ended and was not taken yet, without waiting for anything."""
        done = [future for future in self._calls if future.done() and not future.cancelled()]
        calls = [(self._calls.pop(future), future) for future in done]
        return [(call.task, _outcome(f, 0.0)) for call, f in calls if call.task is not None]

    def renew(self, error: BaseException) -> None:
        """Replace a pool of processes that has died by one like it.

        **Raises:** The error, if it is no such pool; `BrokenExecutor` if the new one dies of
        itself, in its initializer for instance.
        """
        found = pool_like(self._executor)
        if found is None:
            raise error
        if self._own:
            self._executor.shutdown(wait=False)
        self._executor, self._own = found, True
        found.submit(int).result()

    def revive(self) -> None:
        """See that workers live, but for those that are held by calls that were given up.

        **Raises:** As `renew`, which replaces a pool that has died.
        """
        if not self._calls:
            try:
                self._executor.submit(int).result()
            except BrokenExecutor as error:
                self.renew(error)

    def stop(self, *, wait_for: bool = True) -> None:
        """Start nothing more; wait for what has started, unless it may hang."""
        for future in self._calls:
            future.cancel()
        if not wait_for:
            self._calls = {}
        if self._timeout is None:
            wait(self._calls)
        if self._own:
            # Left alone, a worker that hangs would keep this process alive.
            pool: Any = self._executor
            workers = list((pool._processes or {}).values()) if self._calls else []
            pool.shutdown(wait=False)
            for worker in workers:
                worker.terminate()
        if self._stamps is not None:
            self._stamps.cleanup()


def _stamped(stamp: str, function: Callable[..., Any], *args: Any) -> Any:
    """Leave a sign of having begun; called in a process of a pool."""
    with contextlib.suppress(OSError):
        open(stamp, "w").close()
    return function(*args)


def _outcome(future: Future[Any], seconds: float) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    lost = Lost(error, seconds)
    return lost if lost.is_death else Raised(error)
