"""Studies on a SQLite file that another process has locked for longer than SQLite waits."""

import contextlib
import sqlite3
import threading
import time

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DataError, OperationalError

from strategies import Float, SearchSpace
from strategies.optuna import HypergradSampler, patience, report, report_of, run_schedule, suggest
from strategies.schedulers import ASHA
from strategies.searchers import RandomSearcher

SPACE = SearchSpace({"x": Float(-2.0, 2.0), "y": Float(-2.0, 2.0)})


def storage(path):
    # A fiftieth of the 5 seconds that SQLite waits by default.
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0.1}})


def lock(path, seconds, kind="EXCLUSIVE"):
    """Hold a lock from now on, which ends by itself."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"BEGIN {kind}")

    def end():
        time.sleep(seconds)
        connection.execute("COMMIT")
        connection.close()

    threading.Thread(target=end).start()


class Locked(HypergradSampler):
    """The file is locked when the third suggestion is made."""

    def __init__(self, path, kind):
        super().__init__(space=SPACE, seed=0)
        self._path, self._kind = path, kind

    def before_trial(self, study, trial):
        super().before_trial(study, trial)
        if trial.number == 2:
            lock(self._path, 1.0, self._kind)


def objective(trial):
    config = suggest(trial, SPACE)
    gradient = {key: 2 * value for key, value in config.items()}
    return report(trial, sum(value**2 for value in config.values()), gradient)


@pytest.mark.parametrize("kind", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_suggestion_waits_for_a_lock(tmp_path, kind):
    path = tmp_path / "study.db"
    study = optuna.create_study(storage=storage(path), sampler=Locked(path, kind))
    study.optimize(objective, n_trials=5)
    free = optuna.create_study(sampler=HypergradSampler(space=SPACE, seed=0))
    free.optimize(objective, n_trials=5)
    assert [t.params for t in study.trials] == [t.params for t in free.trials]


def test_a_report_waits_for_a_lock(tmp_path):
    path = tmp_path / "study.db"

    def trained(trial):
        config = suggest(trial, SPACE)
        lock(path, 1.0)
        return report(trial, config["x"] ** 2, {"x": 2 * config["x"]})

    study = optuna.create_study(storage=storage(path), sampler=HypergradSampler(seed=0))
    study.optimize(trained, n_trials=1)
    (trial,) = study.trials
    assert report_of(trial).gradient == {"x": 2 * trial.params["x"]}


def test_a_job_waits_for_a_lock(tmp_path):
    path = tmp_path / "study.db"
    jobs = []

    def train(trial, job):
        jobs.append(job.number)
        if len(jobs) == 2:
            lock(path, 1.0)
        return job.config["x"]

    study = optuna.create_study(storage=storage(path))
    schedule = run_schedule(study, train, ASHA(RandomSearcher(SPACE), 3, configurations=3))
    # None was trained twice, and none has failed.
    assert len(study.trials) == len(jobs) == schedule.done
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in study.trials)


@contextlib.contextmanager
def refused(monkeypatch, cause):
    """Storages take no attributes of the system, for a reason that SQLAlchemy names."""

    def refuse(*_):
        raise StorageInternalError("not committed") from cause("", {}, Exception("refused"))

    with monkeypatch.context() as changed:
        changed.setattr(optuna.storages.InMemoryStorage, "set_trial_system_attr", refuse)
        changed.setattr(patience, "_PATIENCE", 0.2)
        yield


def test_a_report_that_is_not_taken_loses_the_gradient_only(monkeypatch):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with refused(monkeypatch, OperationalError), pytest.warns(UserWarning, match="only the value"):
        study.optimize(objective, n_trials=1)
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.best_value == sum(value**2 for value in study.best_params.values())
    assert report_of(study.trials[0]).gradient is None


def test_a_report_that_is_not_taken_does_not_make_a_trial_feasible(monkeypatch):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with refused(monkeypatch, OperationalError), pytest.raises(StorageInternalError):
        study.optimize(lambda trial: report(trial, 0.0, constraints={"c": 1.0}), n_trials=1)
    assert study.trials[0].state == TrialState.FAIL


def test_what_waiting_does_not_mend_is_not_waited_for(monkeypatch):
    calls = []

    def call():
        calls.append(None)
        raise StorageInternalError("not committed") from DataError("", {}, Exception("too long"))

    with pytest.raises(StorageInternalError):
        patience.patiently(call)
    assert len(calls) == 1
