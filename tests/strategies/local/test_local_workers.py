"""Executors whose workers hang, die, or send back what does not arrive."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from joblib.externals.loky import ProcessPoolExecutor as LokyExecutor
from joblib.externals.loky import get_reusable_executor

from strategies import report
from strategies.local import minimize
from strategies.local.pools import pool_like
from strategies.searchers import GridSearcher, RandomSearcher
from strategies.space import Float, Int, SearchSpace
from strategies.state import read_state

SPACE = SearchSpace({"x": Float(0, 1)})
GRID = SearchSpace({"n": Int(0, 7)})
FORK = multiprocessing.get_context("fork")


class TwoArgumentsError(Exception):
    """Pickles, and cannot be made again from what it was pickled to."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def deadly(config):
    if config["n"] in (2, 5):
        os._exit(137)  # as the out-of-memory killer would
    if config["n"] == 3:
        raise TwoArgumentsError("no", "reason")
    return float(config["n"])


def always_deadly(config):
    os._exit(1)


def slow_start():
    time.sleep(0.6)


def quick(config):
    return config["x"]


def search(objective, pool, **options):
    grid = GridSearcher(GRID)
    return minimize(objective, GRID, trials=8, searcher=grid, workers=pool, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProcessPoolExecutor(1, FORK),
        lambda: ProcessPoolExecutor(3, FORK),
        lambda: get_reusable_executor(2, timeout=60),
    ],
)
def test_only_what_kills_its_worker_has_failed(make):
    with make() as pool, pytest.warns(UserWarning, match="failed"):
        found = search(deadly, pool)
    assert {t.config["n"] for t in found.trials if t.status == "failed"} == {2, 3, 5}
    assert sorted(o.value for o in found.history if o.value is not None) == [0, 1, 4, 6, 7]
    errors = {t.config["n"]: t.error for t in found.trials if t.error}
    assert isinstance(errors[2], BrokenExecutor)
    # The exception that did not arrive is told by its text.
    assert "TwoArgumentsError('no: reason')" in str(errors[3])


def unsendable(config):
    info = {"why": lambda: None} if config["n"] == 3 else {}
    return report(float(config["n"]), info=info)


def test_pool_like_another_has_its_arguments():
    with (
        LokyExecutor(
            2, job_reducers={int: abs}, env={"A": "1"}, timeout=9, initializer=slow_start
        ) as pool,
        pool_like(pool) as other,
    ):
        assert (other._max_workers, other._env, other._timeout) == (2, {"A": "1"}, 9)
        assert other._call_queue._reducers == other._result_queue._reducers == {int: abs}
        assert other._initializer is slow_start


class OfTwo(ProcessPoolExecutor):
    """A pool that nobody else can make again: it does not keep its arguments."""

    def __init__(self, context):
        super().__init__(2, context)


def test_what_kills_a_pool_that_cannot_be_replaced_is_found_by_later_calls(tmp_path):
    path, deaths = tmp_path / "state.json", 0
    while deaths < 9:
        with OfTwo(FORK) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = search(deadly, pool, state_path=path)
                break
            except BrokenExecutor:
                deaths += 1
    # Each in company, which may be that of the other one, and alone.
    assert 3 <= deaths <= 4
    assert {o.config["n"] for o in found.history if o.status == "failed"} == {2, 3, 5}


def test_a_result_that_cannot_be_sent_is_a_failure():
    with ProcessPoolExecutor(2, FORK) as pool, pytest.warns(UserWarning, match="failed"):
        found = search(unsendable, pool)
    assert [o.config["n"] for o in found.history if o.status == "failed"] == [3]
    assert found.best_value == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_trials_that_kill_their_workers_from_the_first_on_have_failed(workers):
    with ProcessPoolExecutor(workers, FORK) as pool, pytest.warns(UserWarning, match="failed"):
        found = search(always_deadly, pool)
    assert [o.status for o in found.history] == ["failed"] * 8


def test_pool_that_dies_of_itself_is_an_error(tmp_path):
    path = tmp_path / "state.json"
    with (
        ProcessPoolExecutor(1, FORK, initializer=always_deadly, initargs=({},)) as pool,
        pytest.raises(BrokenExecutor),
    ):
        search(quick, pool, state_path=path)
    assert read_state(path)["history"] == []  # no trial has failed


class Panic(BaseException):
    """As a library in Rust raises it."""


def panics(config):
    if config["n"] == 3:
        raise Panic("no memory")
    return float(config["n"])


@pytest.mark.parametrize("processes", [False, True])
def test_whatever_a_trial_raises_is_its_failure(processes):
    pool = ProcessPoolExecutor(2, FORK) if processes else ThreadPoolExecutor(2)
    with pool, pytest.warns(UserWarning, match="Panic"):
        found = search(panics, pool)
    assert [o.config["n"] for o in found.history if o.status == "failed"] == [3]


def half_a_second(config):
    time.sleep(0.5)
    return config["x"]


def test_time_in_the_queue_of_another_pool_of_processes_is_not_the_trials_time():
    with LokyExecutor(1) as pool:
        pool.submit(int).result()
        pool.submit(time.sleep, 1.0)
        found = minimize(
            half_a_second,
            SPACE,
            trials=2,
            searcher=RandomSearcher(SPACE),
            workers=pool,
            timeout=0.9,
        )
    assert [o.status for o in found.history] == ["complete"] * 2


def test_time_begins_when_a_trial_begins():
    called = []

    def objective(config):
        called.append(config["x"])
        time.sleep(0.7 if len(called) == 2 else 0.0)
        return config["x"]

    with ThreadPoolExecutor(1) as pool, pytest.warns(UserWarning, match="failed|held"):
        found = minimize(
            objective, SPACE, trials=6, searcher=RandomSearcher(SPACE), workers=pool, timeout=0.2
        )
    assert len(called) == 6
    assert [t.number for t in found.trials if t.status == "failed"] == [1]


def test_start_of_a_worker_is_not_the_trials_time():
    with ProcessPoolExecutor(1, FORK, initializer=slow_start) as pool:
        found = minimize(
            quick, SPACE, trials=2, searcher=RandomSearcher(SPACE), workers=pool, timeout=0.4
        )
    assert [o.status for o in found.history] == ["complete"] * 2


KILLED = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from strategies import Float
from strategies.local import minimize

def objective(config):
    time.sleep(0.05)
    return config["x"]

if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        trials, path = int(sys.argv[1]), sys.argv[2]
        minimize(objective, {"x": Float(0, 1)}, trials=trials, workers=pool, state_path=path)
"""


def test_lock_ends_with_the_search_though_its_workers_survive(tmp_path):
    path = tmp_path / "state.json"
    command = [sys.executable, "-c", KILLED, "{}", str(path)]
    command[3] = "100000"
    search = subprocess.Popen(command)
    while not path.exists():
        time.sleep(0.05)
    workers = [
        int(p.name)
        for p in pathlib.Path("/proc").iterdir()
        if p.name.isdecimal() and _parent(p) == search.pid
    ]
    search.kill()
    search.wait()
    try:
        assert len(workers) == 2
        assert all(pathlib.Path(f"/proc/{w}").exists() for w in workers)
        # The same call continues: it is not refused.
        command[3] = "1"
        subprocess.run(command, check=True, timeout=120)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def _parent(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
