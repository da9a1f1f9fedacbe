"""Shares of the variance, where they are known."""

import numpy as np
import pytest

from strategies import (
    BayesSearcher,
    Categorical,
    Choice,
    Float,
    Int,
    Observation,
    RandomSearcher,
    SearchSpace,
    report,
)
from strategies.importance import importance
from strategies.local import minimize
from strategies.schedulers import Hyperband, run

SPACE = SearchSpace(
    {"a": Float(1e-3, 1.0, log=True), "b": Float(-2.0, 2.0), "idle": Float(0, 1), "c": Int(1, 3)}
)
# value = 3 u_a + b^2 + [0, 0.5, 1][c], u uniform: variances 9/12, 16 * 4/45, 1/6.
VARIANCES = np.array([9 / 12, 64 / 45, 0.0, 1 / 6])
SHARES = dict(zip(["a", "b", "idle", "c"], VARIANCES / VARIANCES.sum(), strict=True))


def additive(config):
    place = np.log(config["a"] / 1e-3) / np.log(1e3)
    value = 3 * place + config["b"] ** 2 + (config["c"] - 1) / 2
    gradient = {"a": 3 / np.log(1e3) / config["a"], "b": 2 * config["b"], "idle": 0.0}
    return value, gradient


def seen(count, seed=0, gradients=True, space=SPACE, function=additive):
    rng = np.random.default_rng(seed)
    found = []
    for config in (space.sample(rng) for _ in range(count)):
        value, gradient = function(config)
        found.append(Observation(config, value, gradient if gradients else None))
    return found


@pytest.mark.parametrize("gradients", [True, False])
def test_anova_finds_the_shares_of_an_additive_function_and_its_intervals_cover(gradients):
    count = 40 if gradients else 70
    covered = 0
    for seed in range(3):
        found = importance(seen(count, seed, gradients), SPACE, seed=seed)
        for name, share in SHARES.items():
            assert found[name].share == pytest.approx(share, abs=0.06)
            covered += found[name].low - 0.005 <= share <= found[name].high + 0.005
        assert list(found) == sorted(found, key=lambda name: -found[name].share)
        assert found["idle"].high < 0.03
    assert covered >= 10  # of 12, at 90 %


def test_shares_from_gradients_are_those_of_the_mean_squares():
    found = importance(seen(200), SPACE, method="gradients")
    # Mean squares in unit coordinates: 9, and E (4 * 2 b)^2 = 64 * 4/3, without the integer.
    expected = {"a": 9, "b": 64 * 4 / 3, "idle": 0.0}
    for name, part in expected.items():
        share = part / sum(expected.values())
        assert found[name].low - 1e-12 <= share <= found[name].high + 1e-12
        assert found[name].share == pytest.approx(share, abs=0.02)
    assert found.keys() == expected.keys()
    assert found["idle"].share == 0.0


def test_length_scales_tell_what_is_idle():
    found = importance(seen(60), SPACE, method="process")
    assert next(iter(found)) == "b"
    assert found["idle"].share < 0.1
    for share in found.values():
        assert share.low <= share.share <= share.high


def test_an_array_has_one_share_or_one_for_each_entry():
    space = SearchSpace({"w": Float(0, 1, shape=(3,)), "v": Float(0, 1)})

    def function(config):
        gradient = {"w": [1.0, 2.0, 0.0], "v": 2.0}
        return float(np.dot(gradient["w"], config["w"]) + 2.0 * config["v"]), gradient

    observations = seen(30, space=space, function=function)
    for method in ("anova", "gradients"):
        whole = importance(observations, space, method=method)
        parts = importance(observations, space, method=method, entries=True)
        assert whole["w"].share == pytest.approx(5 / 9, abs=0.02)
        assert [parts[f"w[{i}]"].share for i in range(3)] == pytest.approx(
            [1 / 9, 4 / 9, 0], abs=0.02
        )


def test_a_conditional_hyperparameter_matters_as_often_as_it_exists():
    space = SearchSpace({"m": Choice({"on": {"x": Float(0, 1)}, "off": {}})})

    def function(config):
        if config["m"]["kind"] == "off":
            return 2.0, None
        return 4.0 * config["m"]["on"]["x"], {"m": {"on": {"x": 4.0}}}

    # Total variance 16/12 / 2; the mean given x varies by half its slope: 4/12. The mean given the
    # choice is 2 either way.
    found = importance(seen(80, space=space, function=function), space)
    assert found["m/on/x"].share == pytest.approx(0.5, abs=0.06)
    assert found["m/kind"].share < 0.05


def test_any_search_is_a_source():
    space = SearchSpace({"x": Float(-1, 1), "y": Float(-1, 1)})

    def objective(config):
        gradient = {"x": 2 * config["x"], "y": 0.0}
        return report(config["x"] ** 2, gradient)

    result = minimize(objective, space, trials=12, searcher=RandomSearcher(space))
    scheduler = run(
        lambda job: objective(job.config), Hyperband(BayesSearcher(space), max_resource=9)
    )
    for source in (result, result.ledger, scheduler):
        assert importance(source, method="gradients")["x"].share == 1.0
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(
        lambda t: t.suggest_float("x", -1, 1) ** 2 + 0 * t.suggest_float("y", -1, 1), n_trials=25
    )
    assert next(iter(importance(study))) == "x"


def test_thousands_of_entries_take_no_time_from_gradients():
    space = SearchSpace({"w": Float(1e-6, 1.0, log=True, shape=(3000,)), "v": Float(0, 1)})
    rng = np.random.default_rng(0)
    observations = [
        Observation(space.sample(rng), 1.0, {"w": np.zeros(3000), "v": 1.0}) for _ in range(5)
    ]
    assert importance(observations, space, method="gradients")["v"].share == 1.0


def test_what_cannot_be_told_is_an_error():
    with pytest.raises(ValueError, match="at least 4 complete trials, received 3"):
        importance(seen(3), SPACE)
    with pytest.raises(ValueError, match="with gradients, received none"):
        importance(seen(9, gradients=False), SPACE, method="gradients")
    with pytest.raises(ValueError, match="'method': expected one of"):
        importance(seen(9), SPACE, method="forest")
    with pytest.raises(ValueError, match="'space': expected"):
        importance(seen(9))
    with pytest.raises(ValueError, match="'source': expected"):
        importance(3, SPACE)


def test_failed_trials_and_constants_change_nothing():
    observations = seen(20)
    failed = [Observation(item.config, None) for item in seen(5, seed=7)]
    assert importance(observations + failed, SPACE) == importance(observations, SPACE)


def test_a_categorical_of_one_choice_has_no_share():
    space = SearchSpace({"x": Float(0, 1), "one": Categorical(["a"]), "k": 3})
    observations = seen(10, space=space, function=lambda c: (c["x"], {"x": 1.0}))
    assert list(importance(observations, space)) == ["x"]
