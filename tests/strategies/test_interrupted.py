"""Ctrl-C, a real SIGINT, on every door that we own: what had finished is in what is returned."""

import os
import signal
import time

import numpy as np
import optuna
import pytest

from strategies import RandomSearcher, Stop
from strategies.optuna import run_schedule
from strategies.schedulers import ASHA, run
from strategies.space import Float, SearchSpace

SPACE = SearchSpace({"x": Float(0.0, 1.0)})


def interrupting(function, call):
    """A function that is interrupted in its call of a number."""
    calls = []

    def wrapped(*arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # the signal comes before this is over
        return function(*arguments)

    return wrapped


def schedule():
    return ASHA(RandomSearcher(SPACE, seed=0), max_resource=4, eta=2)


def test_a_schedule():
    done = run(interrupting(lambda job: job.config["x"], 5), schedule(), jobs=20)
    assert done.stopped == "it was interrupted"
    assert len(done.results()) > 0
    assert len(done.pending()) == 1


def finished(study):
    """Trials with a result; that of the interrupted job is none."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def test_a_schedule_of_optuna_and_its_next_call(study):
    made = schedule()
    done = run_schedule(study, interrupting(lambda trial, job: job.config["x"], 5), made, jobs=20)
    assert done.stopped == "it was interrupted"
    assert finished(study) == 4
    again = run_schedule(study, lambda trial, job: job.config["x"], made, jobs=3)
    assert again.stopped is None
    assert finished(study) == 7


def test_a_schedule_of_optuna_stops(study):
    done = run_schedule(
        study, lambda trial, job: job.config["x"], schedule(), stop=Stop(patience=3), jobs=100
    )
    assert "without a better one" in done.stopped
    assert len(study.trials) < 100
    with pytest.raises(ValueError, match="'stop': expected a Stop, received 3"):
        run_schedule(study, lambda trial, job: 0.0, schedule(), stop=3)


def test_scikit_learns_search_and_its_stop():
    from sklearn.base import BaseEstimator, RegressorMixin

    from strategies.importance import importance
    from strategies.sklearn import HypergradSearchCV

    class Slow(RegressorMixin, BaseEstimator):
        """A constant, with a score that says how far its parameter is from 0.3."""

        def __init__(self, x=0.0):
            self.x = x

        def fit(self, X, y):
            self.fitted_ = fitted()
            return self

        def predict(self, X):
            return np.zeros(len(X))

        def score(self, X, y):
            return -((self.x - 0.3) ** 2)

    def search(**options):
        return HypergradSearchCV(
            Slow(), {"x": Float(0.0, 1.0)}, cv=2, criterion=None, n_trials=30, **options
        )

    data = np.zeros((8, 1)), np.arange(8.0)
    fitted = interrupting(lambda: 1, 11)
    found = search().fit(*data)
    assert found.stopped_ == "it was interrupted"
    assert len(found.trials_) == len(found.cv_results_["params"]) == 5
    assert found.best_params_["x"] == min(
        (trial.config["x"] for trial in found.trials_), key=lambda x: (x - 0.3) ** 2
    )
    assert set(importance(found)) == {"x"}
    found = search(stop=Stop(patience=4)).fit(*data)
    assert found.stopped_ == "4 trials without a better one"
    assert len(found.trials_) < 30
    assert search(stop=Stop(seconds=1e-6)).fit(*data).cv_results_["params"]
