"""The embedded engine: results, failures, threads, and a run that is killed."""

import copy
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from strategies import Categorical, Float, RandomSearcher, SearchSpace, report
from strategies.local import minimize
from strategies.schedulers import ASHA, run

SPACE = SearchSpace({"x": Float(-5, 5, shape=(2,)), "sign": Categorical([1, -1])})


def objective(config):
    x = np.array(config["x"])
    value = float(np.sum((x - config["sign"]) ** 2)) + (config["sign"] < 0)
    return report(value, {"x": 2 * (x - config["sign"])}, info={"seen": x})


def test_minimum_of_a_mixed_problem():
    seen = []
    result = minimize(objective, SPACE, trials=14, callbacks=[seen.append])
    assert result.best_value < 1e-6
    assert result.best_config["sign"] == 1
    assert [trial.number for trial in seen] == list(range(14))
    assert seen == result.trials
    assert seen[3].info["seen"] == seen[3].config["x"]
    curve = result.best_so_far()
    assert curve.shape == (14,)
    assert np.all(np.diff(curve) <= 0)
    assert curve[-1] == result.best_value
    assert result.table()[2]["x"] == result.history[2].config["x"]


def test_plain_numbers_and_plain_mappings_will_do():
    result = minimize(lambda c: (c["a"] - 0.3) ** 2, {"a": Float(0, 1)}, trials=30, seed=1)
    assert result.best_value < 1e-3


def test_a_failed_trial_does_not_end_the_search():
    def sometimes(config):
        if config["x"][0] > 0:
            raise RuntimeError("diverged")
        return objective(config)

    with pytest.warns(UserWarning, match=r"trial \d+ failed: RuntimeError\('diverged'\)"):
        result = minimize(sometimes, SPACE, trials=20, searcher=RandomSearcher(SPACE, seed=0))
    failed = [trial for trial in result.trials if trial.status == "failed"]
    assert 0 < len(failed) < 20
    assert isinstance(failed[0].error, RuntimeError)
    assert result.best_config["x"][0] <= 0
    with pytest.raises(RuntimeError, match="diverged"):
        minimize(sometimes, SPACE, trials=20, searcher=RandomSearcher(SPACE), raise_errors=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_calls_exit_has_failed(workers):
    def exits(config):
        return sys.exit(3) if config["x"][0] > 0.5 else objective(config)

    with pytest.warns(UserWarning, match=r"SystemExit\(3\)"):
        found = minimize(exits, SPACE, searcher=RandomSearcher(SPACE), trials=9, workers=workers)
    left = [item.config["x"][0] > 0.5 for item in found.history]
    assert [item.status == "failed" for item in found.history] == left
    assert 0 < sum(left) < 9


def test_nothing_but_failures():
    result = minimize(lambda config: float("nan"), SPACE, trials=5)
    assert result.best_config is None
    assert np.isnan(result.best_so_far()).all()


def test_threads_evaluate_all():
    result = minimize(objective, SPACE, trials=25, workers=4)
    assert sorted(item.number for item in result.history) == list(range(25))
    assert result.best_value < 1e-2


def test_a_misfit_gradient_is_an_error_not_a_failed_trial():
    with pytest.raises(ValueError, match=r"'x': expected a gradient of numbers of shape \(2,\)"):
        minimize(lambda config: report(1.0, {"x": 1.0}), SPACE, trials=3)
    with pytest.raises(ValueError, match="'value': expected a number"):
        minimize(lambda config: np.ones(3), SPACE, trials=3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'trials': expected an integer >= 1"):
        minimize(objective, SPACE, trials=-1)
    other = RandomSearcher(SearchSpace({"y": Float(0, 1)}))
    with pytest.raises(ValueError, match="'searcher': expected one on"):
        minimize(objective, SPACE, trials=1, searcher=other)


def test_a_trial_that_tuned_itself_is_recorded_with_its_own_configuration():
    def tuned(config):
        return report(0.0, config={**config, "x": [1.5, 2.5]})

    result = minimize(tuned, SPACE, trials=1)
    assert result.best_config["x"] == [1.5, 2.5]


def test_a_killed_run_resumes_to_the_same_search(tmp_path):
    whole = minimize(objective, SPACE, trials=12, seed=3, state_path=tmp_path / "whole.json")
    script = f"""
        import os, sys
        sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
        from test_local import SPACE, minimize, objective
        count = 0
        def dies(config):
            global count
            count += 1
            if count == 6:
                os.kill(os.getpid(), 9)
            return objective(config)
        minimize(dies, SPACE, trials=12, seed=3, state_path={str(tmp_path / "killed.json")!r})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    rest = minimize(objective, SPACE, trials=12, seed=3, state_path=tmp_path / "killed.json")
    assert [trial.number for trial in rest.trials] == list(range(5, 12))
    assert [o.config for o in rest.history] == [o.config for o in whole.history]
    assert [o.value for o in rest.history] == [o.value for o in whole.history]


def test_callback_that_returns_true_ends_the_search():
    stop = [lambda trial: trial.number == 3]
    assert len(minimize(objective, SPACE, trials=9, callbacks=stop).history) == 4
    with pytest.raises(ValueError, match="'callbacks': expected True to stop"):
        minimize(objective, SPACE, trials=9, callbacks=[lambda trial: trial.value])
    scheduler = ASHA(RandomSearcher(SPACE), 4, configurations=9)
    done = []

    def third(job, given):
        done.append(job.number)
        return len(done) == 3

    run(lambda job: objective(job.config), scheduler, callbacks=[third])
    assert len(done) == 3


def test_result_says_what_it_has():
    found = minimize(objective, SPACE, trials=1)
    with pytest.raises(AttributeError, match="a Result has no 'params'; it has best_config"):
        _ = found.params
    assert copy.copy(found).best_value == found.best_value
