"""The embedded engine when things go wrong: full disks, damaged files, trials that hang."""

import json
import math
import multiprocessing
import os
import pathlib
import resource
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from strategies.local import minimize
from strategies.schedulers import ASHA, IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher
from strategies.space import Float, SearchSpace
from strategies.state import read_state

SPACE = SearchSpace({"x": Float(0, 1)})


def searcher():
    return RandomSearcher(SPACE, seed=3)


def value(config):
    return config["x"] ** 2


def job_value(job):
    return job.config["x"] + 1 / job.resource


def hyperband():
    return IterativeDeepeningHyperband(searcher(), 4, eta=2)


def observations(found):
    return [(o.number, o.config, o.value) for o in found.history]


def rungs(scheduler):
    return {n: {i: o.value for i, o in c.results.items()} for n, c in scheduler.candidates.items()}


@pytest.fixture
def disk():
    """A disk on which no file may be larger than so much, until it is given more."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield limit
    limit()


def test_full_disk_is_a_warning_and_the_next_save_has_it_all(disk, tmp_path):
    path = tmp_path / "state.json"

    def trial(config):
        number = len(seen)
        seen.append(config)
        if number == 4:
            disk(path.stat().st_size)
        if number == 7:
            stored.append(json.loads(path.read_text()))
            disk()
        return value(config)

    seen, stored = [], []
    with pytest.warns(UserWarning, match="was not saved: .*the run goes on") as caught:
        found = minimize(trial, SPACE, trials=9, searcher=searcher(), state_path=path)
    assert len(caught) == 3
    assert len(stored[0]["history"]) == 4  # what was there stayed
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.backup", "state.json.lock"]
    again = minimize(trial, SPACE, trials=9, searcher=searcher(), state_path=path)
    assert again.trials == []
    assert observations(again) == observations(found)


def test_full_disk_under_a_scheduler(disk, tmp_path):
    path = tmp_path / "state.json"
    done = []

    def job(job):
        done.append(job.number)
        if len(done) == 4:
            disk(path.stat().st_size)
        if len(done) == 6:
            disk()
        return job_value(job)

    with pytest.warns(UserWarning, match="was not saved"):
        scheduler = run(job, hyperband(), state_path=path)
    again = run(job, hyperband(), state_path=path)
    assert rungs(again) == rungs(scheduler) == rungs(run(job_value, hyperband()))


def test_folder_that_does_not_exist_is_an_error_at_once(tmp_path):
    seen = []
    with pytest.raises(FileNotFoundError):
        minimize(seen.append, SPACE, trials=3, state_path=tmp_path / "nowhere" / "state.json")
    assert seen == []


@pytest.mark.parametrize(
    ("name", "value"), [("state_path", ""), ("progress", "yes"), ("raise_errors", None)]
)
def test_a_folder_is_no_file_and_a_text_no_switch(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected"):
        minimize(lambda config: 1.0, SPACE, trials=1, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.99])
def test_state_that_is_cut_short_is_named_and_the_backup_used(kept, tmp_path):
    path = tmp_path / "state.json"
    whole = minimize(value, SPACE, trials=6, searcher=searcher())
    minimize(value, SPACE, trials=5, searcher=searcher(), state_path=path)
    text = path.read_text()
    path.write_text(text[: int(kept * len(text)) if kept < 1 else 1])
    with pytest.warns(UserWarning, match=r"state.json is truncated or damaged.*backup"):
        found = minimize(value, SPACE, trials=6, searcher=searcher(), state_path=path)
    assert [trial.number for trial in found.trials] == [4, 5]
    assert observations(found) == observations(whole)
    for name in (path, f"{path}.backup"):
        text = pathlib.Path(name).read_text()
        pathlib.Path(name).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"expected a saved state, but .*state.json is truncated"):
        minimize(value, SPACE, trials=6, searcher=searcher(), state_path=path)


def test_second_run_on_the_same_file_is_refused(tmp_path):
    path = tmp_path / "state.json"

    def nested(config):
        with pytest.raises(ValueError, match=r"'state_path'.*another run works on"):
            minimize(value, SPACE, trials=1, state_path=path)
        with pytest.raises(ValueError, match=r"'state_path'.*another run works on"):
            run(job_value, hyperband(), state_path=path)
        return value(config)

    assert len(minimize(nested, SPACE, trials=2, state_path=path).history) == 2
    assert len(minimize(value, SPACE, trials=3, state_path=path).history) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_trial_that_hangs_is_given_up(workers, tmp_path):
    release = threading.Event()

    def sometimes(config):
        if config == hanging:
            release.wait(30)
        return value(config)

    hanging = searcher().propose(1, [], []).config
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"trial 1 failed: TimeoutError\('no result after 0.3"):
        found = minimize(
            sometimes,
            SPACE,
            trials=5,
            searcher=searcher(),
            workers=workers,
            timeout=0.3,
            state_path=tmp_path / "state.json",
        )
    assert time.monotonic() - began < 5
    release.set()
    assert [o.status for o in found.history] == ["complete", "failed", *["complete"] * 3]
    assert found.history[1].cost == 0.3


def test_job_that_hangs_is_given_up():
    release = threading.Event()
    hanging = list(run(job_value, hyperband()).candidates)[1]

    def sometimes(job):
        if job.number == hanging:
            release.wait(30)
        return job_value(job)

    with pytest.warns(UserWarning, match=f"configuration {hanging} failed: TimeoutError"):
        scheduler = run(sometimes, hyperband(), workers=2, timeout=0.3)
    release.set()
    assert scheduler.finished
    (given_up,) = scheduler.candidates[hanging].results.values()
    assert given_up.status == "failed"


def test_error_waits_for_the_threads_that_still_run():
    ended = threading.Event()
    first = iter([True, False])

    def trial(config):
        if next(first):
            return [1.0, 2.0]
        time.sleep(0.3)
        ended.set()
        return value(config)

    with pytest.raises(ValueError, match="'value'"):
        minimize(trial, SPACE, trials=4, workers=2)
    assert ended.is_set()


def test_trials_that_never_report_fail():
    found = minimize(lambda config: None, SPACE, trials=3)
    assert [o.status for o in found.history] == ["failed"] * 3
    scheduler = run(lambda job: None, ASHA(searcher(), 4, eta=2, configurations=3))
    assert [c.results[0].status for c in scheduler.candidates.values()] == ["failed"] * 3


def dies(config):
    if config == searcher().propose(2, [], []).config and not os.path.exists("died"):
        pathlib.Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value(config)


def test_worker_process_that_is_killed_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = minimize(dies, SPACE, trials=4, searcher=searcher(), workers=pool)
    assert os.path.exists("died")
    assert observations(found) == observations(
        minimize(value, SPACE, trials=4, searcher=searcher())
    )


def test_value_that_is_no_number_is_a_failed_observation():
    with pytest.warns(UserWarning, match="'value': expected a number, received 'no number'"):
        found = minimize(lambda config: "no number", SPACE, trials=2)
    assert [o.status for o in found.history] == ["failed"] * 2
    with pytest.warns(UserWarning, match="'value': expected a number"):
        scheduler = run(lambda job: {}, ASHA(searcher(), 4, eta=2, configurations=2))
    assert [c.results[0].status for c in scheduler.candidates.values()] == ["failed"] * 2


class EndedError(Exception):
    """What a callback raises."""


def ends(trial):
    raise EndedError


@pytest.mark.parametrize("options", [{"workers": 3}, {"population": 3}])
def test_an_error_of_a_callback_loses_no_result(tmp_path, options):
    path = tmp_path / "state.json"
    with pytest.raises(EndedError):
        minimize(
            lambda config: config["x"],
            SPACE,
            trials=6,
            searcher=RandomSearcher(SPACE),
            callbacks=[ends],
            state_path=path,
            **options,
        )
    assert [item["number"] for item in read_state(path)["history"]] == [0, 1, 2]


def test_an_error_that_ends_the_search_loses_no_result(tmp_path):
    path, together = tmp_path / "state.json", threading.Barrier(3)

    def objective(config):
        if together.wait(60) == 0:
            raise EndedError
        return config["x"]

    with pytest.raises(EndedError):
        minimize(
            objective,
            SPACE,
            trials=3,
            searcher=RandomSearcher(SPACE),
            workers=3,
            raise_errors=True,
            state_path=path,
        )
    history = read_state(path)["history"]
    assert sorted(item["status"] for item in history) == ["complete", "complete", "failed"]
    assert [item["number"] for item in history] == [0, 1, 2]


@pytest.mark.filterwarnings("error")
def test_warnings_that_are_errors_lose_no_result(tmp_path):
    path = tmp_path / "state.json"
    with pytest.raises(UserWarning, match="failed"):
        minimize(lambda config: math.sqrt(-1.0), SPACE, trials=1, state_path=path)
    assert [item["status"] for item in read_state(path)["history"]] == ["failed"]
