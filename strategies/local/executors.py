"""The loop of both embedded engines: trials one by one, in threads or in an executor."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

from strategies.local.running import Lost, Raised, Running, T, Threads


def work(
    more: Callable[[int], T | None],
    call: Callable[[T], tuple[Any, ...]],
    record: Callable[[T, Any], None],
    workers: int | Executor,
    timeout: float | None,
    suspects: set[int],
) -> None:
    """Evaluate tasks until there are none left.

    A pool of processes whose worker dies is replaced by one like it. What was running then is
    suspect: it is evaluated again, alone. If that kills its worker too, it is lost.

    **Arguments:**

    - `more`: the next task, given how many are running, or `None` if there is none now.
    - `call`: the function that evaluates a task, and its arguments.
    - `record`: called in this thread with a task and its result, a `Lost` if there is none.
    - `workers`: a number of threads, or an executor; with 1 and no `timeout`, this thread.
    - `timeout`: seconds after which a task is given up. Default: never.
    - `suspects`: numbers of the tasks that may kill their worker, for whoever continues after a
      `BrokenExecutor`; what is new is added here.

    **Raises:** `KeyboardInterrupt`, after what had ended was recorded. What `record` or a call
    raises, after what was running beside it was recorded. `BrokenExecutor` if the executor cannot
    be replaced, or dies of itself.
    """
    if workers == 1 and timeout is None:
        while (task := more(0)) is not None:
            function, *arguments = call(task)
            record(task, function(*arguments))
        return
    executor = workers if isinstance(workers, Executor) else Threads(workers)
    running: Running[T] = Running(executor, timeout)
    slots = getattr(executor, "_max_workers", 1)
    alone: list[T] = []
    #: What has ended and is not recorded yet.
    batch: deque[tuple[T, Any]] = deque()

    try:
        while True:
            while not alone and len(running) < slots and (new := more(len(running))) is not None:
                if new.number in suspects or not running.start(new, *call(new)):
                    alone.append(new)
            guilty_if_dead = None
            if alone and not running:
                # The death of a pool that dies of itself is not put down to a task.
                running.revive()
                task = alone.pop(0)
                guilty_if_dead = task.number if task.number in suspects else None
                running.start(task, *call(task))
            if not running:
                break
            dead: list[tuple[T, Lost]] = []
            raised: list[Raised] = []
            batch.extend(sorted(running.finished(), key=lambda pair: pair[0].number))
            while batch:
                task, found = batch.popleft()
                if isinstance(found, Lost) and found.is_death:
                    dead.append((task, found))
                elif isinstance(found, Raised):
                    raised.append(found)
                else:
                    record(task, found)
            for task, lost in dead:
                if task.number == guilty_if_dead:
                    record(task, lost)
                else:
                    suspects.add(task.number)
                    alone.append(task)
            if raised:
                raise raised[0].error
            if dead:
                running.renew(dead[0][1].error)
        running.stop()
    except KeyboardInterrupt:
        _record_rest([*batch, *running.ended()], record)
        # What runs is not waited for.
        running.stop(wait_for=False)
        raise
    except BaseException:
        running.stop()
        _record_rest([*batch, *running.ended()], record)
        raise


def _record_rest(ended: Iterable[tuple[T, Any]], record: Callable[[T, Any], None]) -> None:
    """Record results that are paid for, as something else ends the search by its error."""
    for task, found in ended:
        if not isinstance(found, Lost | Raised):
            with contextlib.suppress(Exception):
                record(task, found)


def work_together(
    more: Callable[[int], T | None],
    call: Callable[[list[T]], list[Any]],
    record: Callable[[T, Any], None],
    size: int,
) -> None:
    """Evaluate tasks `size` at a time, by one call, until there are none left; see `work`."""
    while True:
        tasks: list[T] = []
        while len(tasks) < size and (task := more(len(tasks))) is not None:
            tasks.append(task)
        if not tasks:
            return
        batch = deque(zip(tasks, call(tasks), strict=True))
        try:
            while batch:
                record(*batch.popleft())
        except BaseException:
            _record_rest(batch, record)
            raise
