"""Several processes on one study, processes that die, and disks that are full."""

import os
import pathlib
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import HeartbeatThread
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from strategies.observation import Suggestion
from strategies.optuna import (
    HypergradSampler,
    JournalFile,
    report,
    report_of,
    run_schedule,
    suggest,
)
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher, Searcher
from strategies.space import Float, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
ROOT = pathlib.Path(__file__).parents[3]
HEARTBEATS = "SELECT COUNT(*) FROM trial_heartbeats WHERE trial_id = ?"
SPACE = SearchSpace({"x": Float(0, 1), "l2": Float(0, 1, shape=(2,))})


def open_storage(url, **heartbeat):
    if url.startswith("grpc:"):
        return optuna.storages.GrpcStorageProxy(host="localhost", port=int(url[5:]))
    if url.startswith("sqlite:"):
        # Two processes that write at the same moment wait for each other.
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}}, **heartbeat)
    return JournalStorage(JournalFile(url))


def open_study(url, **options):
    return optuna.create_study(
        study_name="s", storage=open_storage(url), load_if_exists=True, **options
    )


def value(config, resource=1):
    return (config["x"] - 0.3) ** 2 + sum(config["l2"]) / resource


def make():
    return IterativeDeepeningHyperband(RandomSearcher(SPACE, seed=1), 4, eta=2)


def table(schedule):
    return {
        (c.number, level): (o.config, o.value)
        for c in schedule.candidates.values()
        for level, o in c.results.items()
    }


def alone():
    return table(run(lambda job: value(job.config, job.resource), make()))


def done(study):
    """How often each job was finished."""
    jobs = [t.user_attrs["hypergrad:job"] for t in study.trials if t.state != TrialState.FAIL]
    return sorted((job["number"], job["level"]) for job in jobs)


# What the other processes do


def work_together(url):
    """Share the jobs of a scheduler."""

    def train(trial, job):
        time.sleep(0.05)
        return value(job.config, job.resource)

    run_schedule(open_study(url), train, make(), alone=False)


def optimise_together(url):
    """Share a plain study."""

    def objective(trial):
        config = suggest(trial, SPACE)
        time.sleep(0.02)
        return report(trial, value(config), {"x": 2 * (config["x"] - 0.3)})

    sampler = HypergradSampler(searcher=RandomSearcher, space=SPACE, seed=4)
    open_study(url, sampler=sampler).optimize(objective, n_trials=8)


def die_at_work(url):
    """Die in the middle of the third job, with a checkpoint, before its thread could beat."""
    HeartbeatThread._record_heartbeat = staticmethod(lambda *arguments: None)
    storage = open_storage(url, heartbeat_interval=1, grace_period=2)
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)

    def train(trial, job):
        if trial.number == 2:
            trial.set_user_attr("checkpoint", "half of the work")
            os.kill(os.getpid(), signal.SIGKILL)
        return value(job.config, job.resource)

    run_schedule(study, train, make(), alone=False)


def die_in_a_trial(url):
    """Die in the middle of the third trial of `optimize`, with a checkpoint."""
    storage = open_storage(
        url,
        heartbeat_interval=1,
        grace_period=2,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    study = optuna.create_study(
        study_name="s",
        storage=storage,
        sampler=HypergradSampler(searcher=RandomSearcher, space=SPACE, seed=4),
        load_if_exists=True,
    )

    def objective(trial):
        config = suggest(trial, SPACE)
        if trial.number == 2:
            trial.set_user_attr("checkpoint", "half of the work")
            # Optuna takes no trial for stale whose heart has never beaten.
            with sqlite3.connect(url.removeprefix("sqlite:///")) as file:
                while not file.execute(HEARTBEATS, [trial._trial_id]).fetchone()[0]:
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return value(config)

    study.optimize(objective, n_trials=4)


def fill_the_disk(url, limit):
    """Work until the storage's file may not grow any more."""
    study = open_study(url)
    schedule = make()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    run_schedule(study, lambda trial, job: value(job.config, job.resource), schedule)


def process(task, *arguments):
    return subprocess.Popen(
        [sys.executable, __file__, task, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=["sqlite", "journal", "grpc"])
def url(request, tmp_path):
    if request.param == "journal":
        yield f"{tmp_path}/journal"
        return
    file = f"sqlite:///{tmp_path}/study.db"
    if request.param == "sqlite":
        yield file
        return
    pytest.importorskip("grpc")
    import socket

    from optuna.storages._grpc.server import make_server

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = make_server(open_storage(file), "localhost", port)
    server.start()
    yield f"grpc:{port}"
    server.stop(None).wait()


def test_two_processes_share_the_jobs_of_a_scheduler(url):
    open_study(url)
    both = [process("work_together", url) for _ in range(2)]
    for one in both:
        _, error = one.communicate(timeout=120)
        assert one.returncode == 0, error
    study = open_study(url)
    schedule = run_schedule(study, lambda trial, job: 1 / 0, make())
    found, expected = table(schedule), alone()
    lost, twice = len(expected.keys() - found.keys()), len(done(study)) - len(set(done(study)))
    print(f"\n{url[:6]}: two processes: {lost} observations lost, {twice} counted twice")
    assert found == expected
    assert lost == twice == 0


def test_two_processes_share_a_study(url):
    open_study(url)
    both = [process("optimise_together", url) for _ in range(2)]
    for one in both:
        _, error = one.communicate(timeout=120)
        assert one.returncode == 0, error
    sampler = HypergradSampler(searcher=RandomSearcher, space=SPACE, seed=4)
    single = optuna.create_study(sampler=sampler)
    single.optimize(lambda trial: value(suggest(trial, SPACE)), n_trials=16)
    assert [t.params for t in open_study(url).trials] == [t.params for t in single.trials]


def wait_until_stale(url, **options):
    time.sleep(3.5)
    return open_storage(url, heartbeat_interval=1, grace_period=2, **options)


def test_job_of_a_process_that_died_is_done_again_from_its_checkpoint(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    assert process("die_at_work", url).wait(60) == -signal.SIGKILL
    study = optuna.load_study(study_name="s", storage=wait_until_stale(url))
    assert study.trials[2].state == TrialState.RUNNING
    found = {}

    def train(trial, job):
        before = trial.user_attrs["hypergrad:job"]["interrupted"]
        if before is not None:
            found[before] = study.trials[before].user_attrs["checkpoint"]
        return value(job.config, job.resource)

    schedule = run_schedule(study, train, make(), alone=False)
    assert found == {2: "half of the work"}
    assert schedule.finished
    assert table(schedule) == alone()
    assert len(done(study)) == len(set(done(study)))


def test_trial_of_a_process_that_died_is_enqueued_again_with_its_checkpoint(tmp_path):
    """Optuna's heartbeat and its callback; the dead trial is no failure to the searcher."""
    url = f"sqlite:///{tmp_path}/study.db"
    assert process("die_in_a_trial", url).wait(60) == -signal.SIGKILL
    callback = RetryHeartbeatStaleTrialCallback()
    storage = wait_until_stale(url, heartbeat_stale_trial_callback=callback)
    seen = []

    class Spy(Searcher):
        def _propose(self, number, history, pending):
            seen.append([o.status for o in history])
            return Suggestion(number, self.space.sample(self.rng(number)))

    study = optuna.load_study(
        study_name="s", storage=storage, sampler=HypergradSampler(searcher=Spy, space=SPACE)
    )
    checkpoints = []

    def objective(trial):
        checkpoints.append(trial.user_attrs.get("checkpoint"))
        return value(suggest(trial, SPACE))

    study.optimize(objective, n_trials=2)
    dead, again = study.trials[2], study.trials[3]
    assert (dead.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == dead.params
    assert checkpoints == ["half of the work", None]
    assert seen == [["complete"] * 3]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_full_disk_loses_nothing_that_was_told(kind, tmp_path):
    """Optuna ends the loop; with space again, the next call goes on."""
    file = tmp_path / kind
    url = f"sqlite:///{file}" if kind == "sqlite" else str(file)
    run_schedule(
        open_study(url), lambda trial, job: value(job.config, job.resource), make(), jobs=3
    )
    limited = process("fill_the_disk", url, file.stat().st_size + 6000)
    _, error = limited.communicate(timeout=60)
    assert limited.returncode == 1, error
    told = done(open_study(url))
    schedule = run_schedule(
        open_study(url), lambda trial, job: value(job.config, job.resource), make()
    )
    assert schedule.finished
    assert table(schedule) == alone()
    after = done(open_study(url))
    assert set(told) <= set(after)
    assert len(after) == len(set(after))


@pytest.mark.parametrize("half", [b'{"op_code":4,"wor', b"x" * 100_000])
def test_journal_heals_from_half_a_line(half, tmp_path):
    """Optuna's own backend appends to it, and cannot read the study after that."""
    outcomes = {}
    for backend in (JournalFile, JournalFileBackend):
        path = tmp_path / backend.__name__
        study = optuna.create_study(study_name="s", storage=JournalStorage(backend(str(path))))
        study.add_trial(optuna.create_trial(value=1.0))
        with path.open("ab") as file:
            file.write(half)
        study = optuna.load_study(study_name="s", storage=JournalStorage(backend(str(path))))
        try:
            study.add_trial(optuna.create_trial(value=2.0))
            again = optuna.load_study(study_name="s", storage=JournalStorage(backend(str(path))))
            outcomes[backend] = [t.value for t in again.trials]
        except (ValueError, AttributeError):
            outcomes[backend] = "unreadable"
    assert outcomes == {JournalFile: [1.0, 2.0], JournalFileBackend: "unreadable"}


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_never_suggest_the_same(kind, tmp_path):
    """Each thread here has its study, its storage and its sampler, as a process would.

    The best configuration lies inside: to a corner a model returns of itself.
    """
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else str(tmp_path / "s.journal")
    open_study(url)

    def inside(trial):
        suggest(trial, SPACE)
        return sum((x - 0.37) ** 2 for x in trial.params.values())

    def work():
        study = open_study(url)
        study.sampler = HypergradSampler(space=SPACE, seed=0)
        study.optimize(inside, n_trials=6)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result()
    params = [tuple(trial.params.values()) for trial in open_study(url).trials]
    assert len(params) == len(set(params)) == 18


class Slow(Searcher):
    """Takes the first of a row that nobody has, and a time in which others lose patience."""

    def _propose(self, number, history, pending):
        taken = {one.config["x"] for one in (*history, *pending)}
        time.sleep(0.03)
        return Suggestion(number, {"x": next(k / 64 for k in range(64) if k / 64 not in taken)})


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_those_who_wait_too_long_do_not_suggest_the_same(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("strategies.optuna.sampler._PATIENCE", 0.01)
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else str(tmp_path / "s.journal")
    open_study(url)

    def work():
        study = open_study(url)
        study.sampler = HypergradSampler(searcher=Slow(SearchSpace({"x": Float(0, 1)})))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result()
    points = [trial.params["x"] for trial in open_study(url).trials]
    assert len(points) == len(set(points)) == 15


@pytest.mark.parametrize(
    "damage", ["text", {"number": 0}, {"number": "0", "level": 0}, {"hypergrad:parts": 3}]
)
def test_a_damaged_job_is_passed_over_with_a_warning(damage):
    study = optuna.create_study()
    run_schedule(study, lambda trial, job: value(job.config, job.resource), make(), jobs=3)
    broken = optuna.create_trial(state=TrialState.WAITING, system_attrs={"hypergrad:job": damage})
    study.add_trial(broken)
    with pytest.warns(UserWarning, match="trial 3: 'hypergrad:job': .*damaged"):
        schedule = run_schedule(
            study, lambda trial, job: value(job.config, job.resource), make(), alone=False
        )
    assert schedule.finished
    assert table(schedule) == alone()


def test_process_that_is_silent_is_waited_for_once(monkeypatch, tmp_path):
    monkeypatch.setattr("strategies.optuna.sampler._PATIENCE", 0.3)
    url = f"sqlite:///{tmp_path}/s.db"
    open_study(url).ask()  # never asks for anything
    study = open_study(url)
    study.sampler = HypergradSampler(space=SPACE, seed=0)
    waited = []
    for _ in range(2):
        start = time.monotonic()
        suggest(study.ask(), SPACE)
        waited.append(time.monotonic() - start)
    assert waited[0] > 0.3 > waited[1]


def test_report_in_parts_replaces_a_longer_and_a_shorter_one():
    study = optuna.create_study()
    trial = study.ask()
    for size in (20_000, 10_000, 3, 10_000):
        report(trial, 0.5, {"l2": [0.123456789] * size})
        frozen = study.trials[0]
        frozen.state, frozen.value = TrialState.COMPLETE, 0.5
        assert report_of(frozen).gradient["l2"] == [0.123456789] * size


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
