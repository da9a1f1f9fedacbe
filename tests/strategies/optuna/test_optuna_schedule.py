"""Schedulers and the pruner on Optuna: the decisions of the schedulers by themselves."""

import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import warnings

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from strategies.observation import Report
from strategies.optuna import JournalFile, RungPruner, report, run_schedule, suggest
from strategies.optuna.jobs import StudyJobs
from strategies.schedulers import ASHA, Hyperband, IterativeDeepeningHyperband, run
from strategies.searchers import HypergradientSearcher, RandomSearcher
from strategies.space import Categorical, Float, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
ROOT = pathlib.Path(__file__).parents[3]
SPACE = SearchSpace(
    {"x": Float(0, 1), "l2": Float(0, 1, shape=(2,)), "kind": Categorical([(1, 2), "b"])}
)


def value(job):
    x = job.config["x"]
    if x > 0.8:
        return math.nan
    return (x - 0.3) ** 2 + sum(job.config["l2"]) / job.resource + (job.config["kind"] == "b")


def objective(trial, job):
    return report(trial, value(job), {"x": 2 * (job.config["x"] - 0.3)})


def table(schedule):
    return {
        (c.number, level): o.value
        for c in schedule.candidates.values()
        for level, o in c.results.items()
    }


def makers(searcher=HypergradientSearcher):
    return {
        "deepening": lambda: IterativeDeepeningHyperband(searcher(SPACE, seed=1), 4, eta=2),
        "promotion": lambda: ASHA(searcher(SPACE, seed=1), 4, eta=2, configurations=8),
        "stopping": lambda: ASHA(
            searcher(SPACE, seed=1), 4, eta=2, configurations=8, mode="stopping"
        ),
    }


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(request, tmp_path):
    if request.param == "memory":
        kept = optuna.storages.InMemoryStorage()
        return lambda: kept
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/study.db"
    return lambda: JournalStorage(JournalFileBackend(str(tmp_path / "journal")))


@pytest.mark.parametrize("kind", makers())
def test_interrupted_loops_decide_as_the_scheduler_alone(storage, kind):
    make = makers()[kind]
    alone = run(lambda job: Report(value(job), {"x": 2 * (job.config["x"] - 0.3)}), make())
    for jobs in (3, 5, None):
        study = optuna.create_study(study_name="s", storage=storage(), load_if_exists=True)
        schedule = run_schedule(study, objective, make(), jobs=jobs)
    assert schedule.finished
    assert table(schedule) == table(alone)
    states = [t.state for t in study.trials]
    top = sum(schedule.top in c.results for c in schedule.candidates.values())
    assert states.count(TrialState.COMPLETE) == top
    assert study.best_value == pytest.approx(schedule.incumbent.value)


def test_growing_continues_from_the_trial_that_holds_the_checkpoint():
    study = optuna.create_study(direction="maximize")
    seen = {}

    def train(trial, job):
        before = trial.user_attrs["hypergrad:job"]["continues"]
        assert (before is None) == (job.resume_from == 0)
        if before is not None:
            assert seen[before] == (job.number, job.resume_from)
        seen[trial.number] = (job.number, job.resource)
        return -value(job)

    make = makers(RandomSearcher)["deepening"]
    run_schedule(study, train, make())
    schedule = make()
    schedule.deepen()
    run_schedule(study, train, schedule)
    alone = run(value, make())
    alone.deepen()
    run(value, alone)
    assert table(schedule) == table(alone)
    assert schedule.incumbent.resource == 8


def test_interrupted_jobs_are_done_again_and_failures_are_not():
    study = optuna.create_study()
    make = makers(RandomSearcher)["promotion"]
    ended = run_schedule(study, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), make())
    assert ended.stopped == "it was interrupted"
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    waiting = run_schedule(study, objective, make(), alone=False, jobs=2)
    assert [job.number for job in waiting.pending()] == [0]
    with pytest.warns(UserWarning, match="on purpose"):
        run_schedule(study, lambda *_: 1 / 0 if None else fail(), make(), jobs=1)
    schedule = run_schedule(study, objective, make())
    assert schedule.finished
    assert study.trials[0].state == TrialState.FAIL
    again = [t for t in study.trials[1:] if t.user_attrs["hypergrad:job"]["number"] == 0]
    assert len(again) >= 1
    failed = [t for t in study.trials if "hypergrad:failed" in t.user_attrs]
    assert any("on purpose" in t.user_attrs["hypergrad:failed"] for t in failed)


def fail():
    raise RuntimeError("on purpose")


def test_a_trial_that_was_handed_out_twice_is_left_to_who_was_faster(monkeypatch):
    """As SQLite may do: another process has the same trial, and has told it by now."""
    make = makers(RandomSearcher)["deepening"]
    expected = table(run(value, make()))
    begun, raced = StudyJobs._begun, []

    def after_the_other(self, trial_id):
        if not raced:
            trial, job = begun(self, trial_id)
            objective(trial, job)
            self.tell(trial, job, value(job), "no number")
        return begun(self, trial_id)

    def beside_the_other(trial, space):
        raced.append(trial.number)
        if len(raced) == 3:
            trial.study.tell(trial.number, state=TrialState.FAIL)
        return suggest(trial, space)

    monkeypatch.setattr(StudyJobs, "_begun", after_the_other)
    monkeypatch.setattr("strategies.optuna.jobs.suggest", beside_the_other)
    study, schedule = optuna.create_study(), make()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        run_schedule(study, objective, schedule)
    assert len(raced) > 3
    assert table(schedule) == pytest.approx(expected, nan_ok=True)


def test_foreign_enqueued_trials_are_refused():
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    with pytest.raises(ValueError, match="no job of a scheduler"):
        run_schedule(study, objective, makers()["promotion"]())


def storage_of(url):
    if "journal" not in url:
        return url
    # A process that dies while it holds the lock is waited for so many seconds.
    lock = JournalFileSymlinkLock(url, grace_period=2)
    return JournalStorage(JournalFile(url, lock_obj=lock))


KILLED = """
import sys, time, optuna
from strategies.optuna import run_schedule
from tests.strategies.optuna.test_optuna_schedule import makers, objective, storage_of
optuna.logging.set_verbosity(optuna.logging.ERROR)

def slow(trial, job):
    time.sleep(0.15)
    return objective(trial, job)

study = optuna.create_study(
    study_name="s", storage=storage_of(sys.argv[1]), load_if_exists=True
)
print("ready", flush=True)
run_schedule(study, slow, makers()["deepening"]())
print("finished", flush=True)
"""


def kill_often(url, times, seed):
    """Kill the loop at random moments; returns how often it was killed while it worked."""
    rng = random.Random(seed)
    killed = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, url],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        if killed < times:
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            killed += process.wait(30) == -signal.SIGKILL
        out, error = process.communicate(timeout=120)
        if "finished" in out:
            return killed
        assert killed <= times, error


def check_killed(url, times):
    alone = run(
        lambda job: Report(value(job), {"x": 2 * (job.config["x"] - 0.3)}), makers()["deepening"]()
    )
    survived = kill_often(url, times, seed=0)
    study = optuna.load_study(study_name="s", storage=storage_of(url))
    schedule = run_schedule(study, objective, makers()["deepening"]())
    finished = [t.user_attrs["hypergrad:job"] for t in study.trials if t.state != TrialState.FAIL]
    jobs = [(job["number"], job["level"]) for job in finished]
    lost = len(table(alone).keys() - table(schedule).keys())
    repeated = len(jobs) - len(set(jobs))
    name = "SQLite" if "sqlite" in url else "journal"
    print(f"\nOptuna, {name}: {survived} kills: {lost} observations lost, {repeated} counted twice")
    assert survived == times
    assert lost == repeated == 0
    assert table(schedule) == table(alone)


def test_killed_loop_loses_and_repeats_nothing(tmp_path):
    check_killed(f"sqlite:///{tmp_path}/study.db", 1)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite:///{}/study.db", "{}/journal"])
def test_loop_killed_twenty_times_loses_and_repeats_nothing(tmp_path, url):
    check_killed(url.format(tmp_path), 20)


def test_pruner_keeps_the_best_fraction_and_no_nan():
    study = optuna.create_study(pruner=RungPruner(9, eta=3))
    ended = []
    for number, level in enumerate([5.0, 6.0, 7.0, 1.0, 2.0, math.nan, 0.5]):
        trial = study.ask()
        for step in range(1, 10):
            trial.report(level, step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                ended.append((number, step))
                break
        else:
            study.tell(trial, level)
    assert ended == [(2, 1), (4, 1), (5, 1)]


def test_pruner_with_sparse_reports_and_maximisation():
    study = optuna.create_study(direction="maximize", pruner=RungPruner(27, min_resource=3, eta=3))
    ended = []
    for number, level in enumerate([1.0, 2.0, 3.0, 0.5]):
        trial = study.ask()
        for step in (0, 2, 4, 20, 27):
            trial.report(level, step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                ended.append((number, step))
                break
        else:
            study.tell(trial, level)
    assert ended == [(3, 4)]
    with pytest.raises(ValueError, match="eta"):
        RungPruner(9, eta=1)
    with pytest.raises(ValueError, match="max_resource"):
        RungPruner(9, min_resource=10)


def test_hyperband_of_any_storage_reports_progress():
    schedule = Hyperband(RandomSearcher(SPACE), 3, eta=3)
    run_schedule(optuna.create_study(), objective, schedule, jobs=4)
    assert schedule.progress().startswith("iteration 0, bracket from 1: 1: 3/3, 3: 1/1")


def test_jobs_of_other_rungs_are_not_taken_for_those_of_these():
    def train(trial, job):
        return job.config["x"] + 1 / job.resource

    study = optuna.create_study()
    run_schedule(study, train, ASHA(RandomSearcher(SPACE), 9, configurations=4))
    with pytest.raises(ValueError, match="expected the resource 3 at level 0, received 1"):
        run_schedule(study, train, ASHA(RandomSearcher(SPACE), 9, min_resource=3, configurations=4))
    with pytest.warns(UserWarning, match="expected the resource 2 at level 1, received 3"):
        halved = run_schedule(study, train, ASHA(RandomSearcher(SPACE), 9, eta=2, configurations=4))
    for one in halved.everything():
        assert one.value == pytest.approx(one.config["x"] + 1 / one.resource)
