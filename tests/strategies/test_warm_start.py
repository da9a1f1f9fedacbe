"""Searchers that start from what an earlier search has found, on whatever engine that was."""

import math

import numpy as np
import optuna
import pytest

from strategies import (
    BayesSearcher,
    Categorical,
    Float,
    HypergradientSearcher,
    Int,
    Observation,
    RandomSearcher,
    SearchSpace,
    TPESearcher,
    report,
)
from strategies.ledger import Ledger
from strategies.local import minimize
from strategies.optuna import HypergradSampler, objective, observations_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = SearchSpace(
    {"x": Float(0, 1, shape=(3,)), "kind": Categorical(["a", "b", "c"]), "n": Int(1, 9)}
)


def loss(config):
    """The gradient is in `x` only."""
    off = np.array(config["x"]) - [0.2, 0.5, 0.8]
    value = float(off @ off) + (config["kind"] != "b") + (config["n"] - 4) ** 2 / 10
    return report(value, {"x": 2 * off})


EARLIER = minimize(loss, SPACE, trials=20, searcher=RandomSearcher(SPACE, seed=5)).history


@pytest.mark.parametrize("make", [HypergradientSearcher, BayesSearcher, TPESearcher])
def test_it_goes_on_from_the_best_of_the_earlier_search(make):
    before = min(item.value for item in EARLIER)
    ledger = Ledger(make(SPACE, seed=0))
    assert ledger.warm_start(EARLIER) == {}
    result = minimize(loss, SPACE, trials=6, searcher=ledger)
    assert len(result.trials) == 6
    assert [item.number for item in result.trials] == list(range(6))
    assert len(result.history) == 26
    told = [item.value for item in result.history if item.number is not None]
    assert np.median(told) < np.median([item.value for item in EARLIER])
    if make is HypergradientSearcher:
        assert min(told) < before


def test_what_does_not_fit_is_left_out_and_said():
    narrow = SearchSpace({"x": Float(0, 1, shape=(3,)), "kind": Categorical(["a", "b"]), "n": 3})
    ledger = Ledger(HypergradientSearcher(narrow))
    left_out = ledger.warm_start(EARLIER)
    fitting = [i for i, o in enumerate(EARLIER) if o.config["kind"] != "c" and o.config["n"] == 3]
    assert len(ledger.history) == len(fitting)
    assert set(left_out) == set(range(20)) - set(fitting)
    for position, message in left_out.items():
        config = EARLIER[position].config
        wrong = "'kind': expected one of" if config["kind"] == "c" else "'n': expected the constant"
        assert wrong in message
    wider = SearchSpace({**SPACE.domains, "extra": Float(0, 1)})
    (message,) = set(Ledger(RandomSearcher(wider)).warm_start(EARLIER[:3]).values())
    assert "'extra'" in message


def test_the_same_results_are_not_counted_twice(tmp_path):
    ledger = Ledger(RandomSearcher(SPACE))
    ledger.warm_start(EARLIER)
    ledger.save(tmp_path / "state.json")
    again = Ledger(RandomSearcher(SPACE))
    again.restore(tmp_path / "state.json")
    assert set(again.warm_start(EARLIER).values()) == {"it is known already"}
    assert again.history == ledger.history


def test_failures_are_learnt_from_too():
    ledger = Ledger(RandomSearcher(SPACE))
    config = SPACE.default()
    assert ledger.warm_start([Observation(config, math.nan, number=3, note={"move": "x"})]) == {}
    (known,) = ledger.history
    assert (known.status, known.number, dict(known.note)) == ("failed", None, {})


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_from_a_study_of_any_sampler(direction):
    sign = 1 if direction == "minimize" else -1

    def turned(config):
        given = loss(config)
        return report(sign * given.value, {"x": (sign * np.array(given.gradient["x"])).tolist()})

    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective(turned, SPACE), n_trials=10)
    study.enqueue_trial({"x[0]": 0.5}, skip_if_exists=False)
    found = observations_of(study, SPACE)
    assert len(found) == 10
    for item in found:
        true = loss(item.config)
        assert item.value == pytest.approx(true.value)
        np.testing.assert_allclose(item.gradient["x"], true.gradient["x"])
    ledger = Ledger(HypergradientSearcher(SPACE))
    assert ledger.warm_start(found) == {}
    assert minimize(loss, SPACE, trials=5, searcher=ledger).best_value < min(
        item.value for item in found
    )
    several = optuna.create_study(directions=["minimize", "minimize"])
    several.optimize(lambda t: (objective(turned, SPACE)(t), 1.0), n_trials=2)
    assert [len(item.values) for item in observations_of(several, SPACE)] == [2, 2]


def test_a_study_that_goes_on_with_our_sampler_knows_its_trials():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective(loss, SPACE), n_trials=10)
    before = study.best_value
    study.sampler = HypergradSampler(space=SPACE)
    study.optimize(objective(loss, SPACE), n_trials=5)
    assert study.best_value < before


@pytest.mark.parametrize(
    "make",
    [
        RandomSearcher,
        HypergradientSearcher,
        lambda space: BayesSearcher(space, startup=2),
        lambda space: TPESearcher(space, startup=2),
    ],
    ids=["random", "hypergradient", "bayes", "tpe"],
)
def test_no_configuration_of_a_discrete_space_is_tried_twice(make):
    space = SearchSpace({"a": Int(0, 2), "b": Categorical(["x", "y", "z"])})
    ledger = Ledger(make(space))
    ledger.warm_start([Observation({"a": 1, "b": "y"}, 0.5)])
    # Two at a time: what is pending counts as tried.
    configs = []
    for _ in range(4):
        asked = [ledger.ask(), ledger.ask()]
        for one in asked:
            configs.append((one.config["a"], one.config["b"]))
            ledger.tell(Observation(one.config, float(one.config["a"]), number=one.number))
    assert len(set(configs)) == 8
    assert (1, "y") not in configs
