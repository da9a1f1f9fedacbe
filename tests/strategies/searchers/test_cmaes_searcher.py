"""CMA-ES: a pure function of the history that finds what random search does not."""

import sys
import warnings

import numpy as np
import pytest

from strategies import (
    Categorical,
    Choice,
    Float,
    Int,
    Ledger,
    Observation,
    Ordinal,
    RandomSearcher,
    SearchSpace,
)
from strategies.local import minimize

pytest.importorskip("cmaes")

from strategies import CMAESSearcher

SPACE = SearchSpace({"x": Float(-5, 5, shape=(4,))})
MIXED = SearchSpace(
    {
        "x": Float(1e-3, 1.0, log=True),
        "n": Int(0, 9),
        "two": Int(0, 1),
        "m": Choice({"a": {"y": Float(0, 1)}, "b": {}, "c": {}}),
        "size": Ordinal([1, 2, 4, 8]),
        "step": Float(0.0, 1.0, step=0.25, shape=(2,)),
        "flag": Categorical([True, False, None]),
    }
)
ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]


def ellipsoid(config):
    z = ROTATION @ (np.array(config["x"]) - [1.0, -2.0, 0.5, 3.0])
    return float(np.array([1.0, 10.0, 100.0, 1000.0]) @ z**2)


def mixed(config):
    value = np.log(config["x"] / 0.1) ** 2 + abs(config["n"] - 7) + (config["two"] - 1) ** 2
    value += {"a": 0.5, "b": 0.0, "c": 1.0}[config["m"]["kind"]] + abs(config["size"] - 4)
    value += float(np.sum((np.array(config["step"]) - 0.25) ** 2)) + (config["flag"] is not None)
    return value + (config["m"]["a"]["y"] if "a" in config["m"] else 0.0)


def test_it_turns_with_an_ellipsoid():
    found = minimize(ellipsoid, SPACE, trials=400, searcher=CMAESSearcher(SPACE, seed=1))
    random = minimize(ellipsoid, SPACE, trials=400, searcher=RandomSearcher(SPACE, seed=1))
    assert found.best_value < 1e-4 * random.best_value


def test_it_searches_a_mixed_conditional_space():
    found = minimize(mixed, MIXED, trials=200, searcher=CMAESSearcher(MIXED, seed=0))
    random = minimize(mixed, MIXED, trials=200, searcher=RandomSearcher(MIXED, seed=0))
    assert found.best_value < 0.3 * random.best_value
    assert found.best_config["n"] == 7


@pytest.mark.parametrize(("space", "function"), [(SPACE, ellipsoid), (MIXED, mixed)])
def test_a_restored_search_goes_on_as_it_would_have(space, function, tmp_path):
    whole = minimize(function, space, trials=40, searcher=CMAESSearcher(space, seed=3))
    path = tmp_path / "state.json"
    minimize(function, space, trials=23, searcher=CMAESSearcher(space, seed=3), state_path=path)
    more = minimize(
        function, space, trials=40, searcher=CMAESSearcher(space, seed=3), state_path=path
    )
    assert [o.config for o in more.history] == [o.config for o in whole.history]


def test_the_order_of_what_it_is_told_does_not_matter():
    history = minimize(ellipsoid, SPACE, trials=30, searcher=CMAESSearcher(SPACE)).history
    searcher = CMAESSearcher(SPACE)
    assert searcher.propose(30, history, []) == searcher.propose(30, history[::-1], [])


def test_pending_trials_belong_to_the_generation_and_late_ones_change_none():
    ledger = Ledger(CMAESSearcher(SPACE, seed=0, population=6))
    asked = [ledger.ask() for _ in range(9)]
    assert {one.note["generation"] for one in asked} == {0}
    assert len({repr(one.config) for one in asked}) == 9
    for one in asked[2:8]:  # 0, 1 and 8 are late
        ledger.tell(Observation(one.config, ellipsoid(one.config), number=one.number))
    second = ledger.ask()
    assert second.note == {"generation": 1, "parents": [2, 3, 4, 5, 6, 7]}
    before = ledger.ask().config
    for one in (asked[0], asked[1]):
        ledger.tell(Observation(one.config, -1e9, number=one.number))
    fresh = CMAESSearcher(SPACE, seed=0, population=6)
    assert fresh.propose(10, ledger.history, [second]).config == before


def test_failed_trials_count_as_the_worst():
    def failing(config):
        if config["x"][0] < 0:
            raise RuntimeError("diverged")
        return float(np.sum((np.array(config["x"]) - 1.0) ** 2))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(failing, SPACE, trials=250, searcher=CMAESSearcher(SPACE, seed=0))
    late = found.history[-100:]
    assert sum(item.status == "failed" for item in late) < 30
    assert found.best_value < 0.01


def test_it_starts_around_the_best_point_that_it_was_given():
    ledger = Ledger(CMAESSearcher(SPACE, seed=0))
    ledger.tell(Observation({"x": [4.0] * 4}, 1.0))
    ledger.tell(Observation({"x": [-4.0] * 4}, 2.0))
    asked = np.array([ledger.ask().config["x"] for _ in range(40)])
    assert (asked.mean(0) > 1.0).all()


def test_what_has_converged_starts_again_with_twice_the_population():
    space = SearchSpace({"x": Float(0, 1)})
    found = minimize(lambda c: 0.0, space, trials=300, searcher=CMAESSearcher(space))
    counts = np.bincount([o.note["generation"] for o in found.history])
    assert counts[0] == 4
    assert counts[:-1].max() >= 8


def test_a_space_of_one_choice_and_bad_options():
    space = SearchSpace({"c": Categorical(["a", "b", "c"])})
    minimize(lambda c: c["c"] == "b", space, trials=8, searcher=CMAESSearcher(space))
    with pytest.raises(ValueError, match="'population': expected an integer >= 4"):
        CMAESSearcher(SPACE, population=2)


def test_the_error_without_cmaes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ImportError, match=r'pip install "hypergrad-engine\[cmaes\]"'):
        CMAESSearcher(SPACE)
