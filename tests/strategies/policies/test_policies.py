"""Policies without a derivative: spaces, choices, rollouts, and a search that finds the optimum."""

import math

import numpy as np
import pytest

from experiments.data.leading_ones import expected, optimum, simulate
from strategies import BayesSearcher, Ordered, SobolSearcher
from strategies.local import minimize
from strategies.policies import Linear, Rollouts, Table, Thresholds

PORTFOLIO = [16, 8, 4, 2, 1]
POLICY = Thresholds("share", PORTFOLIO)


def run(choose, n, rng):
    return simulate(n, lambda i: choose({"share": i / n}), rng)


def time(config, n):
    return expected(
        n, lambda values: np.array([POLICY.choose(config, {"share": i / n}) for i in values])
    )


def test_thresholds_are_passed_one_after_the_other():
    assert isinstance(POLICY.space.domains["thresholds"], Ordered)
    config = {"thresholds": [0.1, 0.2, 0.5, 0.9]}
    shares = [0.0, 0.1, 0.15, 0.3, 0.6, 0.95]
    assert [POLICY.choose(config, {"share": s}) for s in shares] == [16, 8, 8, 4, 2, 1]
    best = {"thresholds": [1 / 16, 1 / 8, 1 / 4, 1 / 2]}
    assert time(best, 100) < 1.03 * optimum(100, PORTFOLIO)[0]


def test_a_table_has_an_action_for_each_cell():
    policy = Table({"x": (0.0, 1.0, 2), "y": (-1.0, 1.0, 3)}, ["a", "b"])
    config = {f"cell{i}": "a" for i in range(6)} | {"cell5": "b", "cell1": "b"}
    assert set(policy.space.domains) == set(config)
    seen = [policy.choose(config, {"x": x, "y": y}) for x in (0.2, 7.0) for y in (-9, 0, 0.9)]
    assert seen == ["a", "b", "a", "a", "a", "b"]


def test_a_linear_policy_keeps_its_bounds():
    policy = Linear(["time"], 1e-3, 10.0, log=True)
    assert policy.choose(policy.space.default(), {"time": 0.3}) == pytest.approx(0.1)
    config = {"constant": 0.5, "time": 1.0}
    assert policy.choose(config, {"time": 9.0}) == pytest.approx(10.0)
    assert policy.choose(config, {"time": -0.25}) == pytest.approx(1e-3 * 1e4**0.25)


def test_rollouts_use_the_same_numbers_for_each_policy_and_judge_on_others():
    objective = Rollouts(POLICY, run, [20, 30], runs=4, seed=1)
    config = {"thresholds": [0.05, 0.1, 0.2, 0.4]}
    found = objective(config)
    again = objective(config)
    assert found.value == again.value
    judged = objective.judge(config, [40], runs=200)
    assert abs(judged.mean - time(config, 40)) < 4 * judged.error
    assert math.isnan(judged.spread)
    assert np.isfinite(objective.judge(config).spread)
    np.testing.assert_allclose(np.mean(found.info["instances"]), found.value)


def test_a_searched_policy_is_near_the_optimum_and_beats_every_static_one():
    objective = Rollouts(POLICY, run, [30], runs=10)
    result = minimize(objective, POLICY.space, trials=25, searcher=BayesSearcher(POLICY.space))
    best = result.best_config
    assert time(best, 30) < 1.1 * optimum(30, PORTFOLIO)[0]
    assert time(best, 60) < 1.15 * optimum(60, PORTFOLIO)[0]  # never seen
    static = min(expected(60, lambda i, k=k: np.full_like(i, k)) for k in PORTFOLIO)
    assert time(best, 60) < 0.95 * static


def test_a_run_that_is_not_finite_fails_its_trial_alone():
    def broken(choose, n, rng):
        choose({"share": 0.5})
        return math.nan if n == 2 else 1.0

    objective = Rollouts(POLICY, broken, [1, 2])
    with pytest.warns(UserWarning, match="instance 1, run 0: expected a finite cost"):
        result = minimize(objective, POLICY.space, trials=2, searcher=SobolSearcher(POLICY.space))
    assert [trial.status for trial in result.trials] == ["failed", "failed"]
    capped = Rollouts(POLICY, broken, [1, 2], cap=5.0)
    assert capped(POLICY.space.default()).value == 3.0


def test_bad_input_is_named():
    config = POLICY.space.default()
    with pytest.raises(ValueError, match="feature 'share': expected a finite number, received nan"):
        POLICY.choose(config, {"share": math.nan})
    with pytest.raises(ValueError, match="feature 'share': expected it among"):
        POLICY.choose(config, {"time": 0.1})
    with pytest.raises(ValueError, match="'actions': expected at least 2"):
        Thresholds("share", [1])
    with pytest.raises(ValueError, match="1 to 1000 cells"):
        Table({"x": (0.0, 1.0, 2000)}, [1, 2])
    with pytest.raises(ValueError, match="0 < low < high"):
        Linear(["x"], 0.0, 1.0, log=True)
    with pytest.raises(ValueError, match="'instances': expected at least one"):
        Rollouts(POLICY, run, [])
