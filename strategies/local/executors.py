"""The loop of both embedded engines: trials one by one, in threads or in an executor."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, Generic, Protocol, TypeVar


class Numbered(Protocol):
    """What is evaluated, a suggestion or a job."""

    @property
    def number(self) -> int:
        """Results that come together are recorded in this order."""


T = TypeVar("T", bound=Numbered)


def work(
    more: Callable[[int], T | None],
    call: Callable[[T], tuple[Any, ...]],
    record: Callable[[T, Any], None],
    workers: int | Executor,
    timeout: float | None,
) -> None:
    """Evaluate tasks until there are none left.

    **Arguments:**

    - `more`: the next task, given how many are running, or `None` if there is none now.
    - `call`: the function that evaluates a task, and its arguments.
    - `record`: called in this thread with a task and its result, `None` if it was given up.
    - `workers`: a number of threads, or an executor; with 1 and no `timeout`, this thread.
    - `timeout`: seconds after which a task is given up. Default: never.
    """
    if workers == 1 and timeout is None:
        while (task := more(0)) is not None:
            function, *arguments = call(task)
            record(task, function(*arguments))
        return
    executor = workers if isinstance(workers, Executor) else Threads(workers)
    slots = getattr(executor, "_max_workers", 1)
    running: Running[T] = Running(executor, timeout)
    try:
        while True:
            while len(running) < slots and (task := more(len(running))) is not None:
                running.start(task, *call(task))
            if not running:
                return
            for ended, result in sorted(running.finished(), key=lambda pair: pair[0].number):
                record(ended, result)
    finally:
        running.stop()


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


class Running(Generic[T]):
    """What is being evaluated, and since when.

    **Arguments:**

    - `executor`: evaluates.
    - `timeout`: seconds after which a call is given up; it is left alone, and its result is ignored
      if it comes after all. Default: never.
    """

    def __init__(self, executor: Executor, timeout: float | None = None) -> None:
        self._executor = executor
        self._timeout = timeout
        self._running: dict[Future[Any], tuple[T, float]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, task: T, function: Callable[..., Any], *args: Any) -> None:
        """Evaluate `function(*args)` for a task."""
        self._running[self._executor.submit(function, *args)] = task, time.monotonic()

    def finished(self) -> list[tuple[T, Any]]:
        """Wait for at least one, and take all that have ended, each with its result.

        The result of a task that was given up is `None`. An exception of a call is raised.
        """
        limit = None
        if self._timeout is not None:
            first = min(since for _, since in self._running.values())
            limit = max(first + self._timeout - time.monotonic(), 0.0)
        done, _ = wait(self._running, timeout=limit, return_when=FIRST_COMPLETED)
        now = time.monotonic()
        ended = []
        for future, (task, since) in list(self._running.items()):
            if future in done:
                ended.append((task, future.result()))
            elif self._timeout is not None and now - since >= self._timeout:
                future.cancel()
                ended.append((task, None))
            else:
                continue
            del self._running[future]
        return ended

    def stop(self) -> None:
        """Start nothing more; wait for what has started, unless it may hang."""
        for future in self._running:
            future.cancel()
        if self._timeout is None:
            wait(self._running)
