"""The choice follows what was seen, and says why."""

from dataclasses import replace

import numpy as np
import pytest

from strategies import (
    AutoSearcher,
    BayesSearcher,
    Float,
    HypergradientSearcher,
    Int,
    Observation,
    RandomSearcher,
    SearchSpace,
    report,
)
from strategies.local import minimize

SPACE = SearchSpace({"x": Float(-2, 2, shape=(2,)), "n": Int(1, 4)})


def bowl(config):
    return float(np.sum((np.array(config["x"]) - 0.7) ** 2) + (config["n"] - 3) ** 2)


def graded(config):
    return report(bowl(config), {"x": 2 * (np.array(config["x"]) - 0.7)})


def observed(count, space=SPACE, **fields):
    rng = np.random.default_rng(0)
    return [Observation(space.sample(rng), float(i), number=i, **fields) for i in range(count)]


def test_with_gradients_it_is_the_hypergradient_searcher():
    found = minimize(graded, SPACE, trials=12, searcher=AutoSearcher(SPACE, seed=2))
    other = minimize(graded, SPACE, trials=12, searcher=HypergradientSearcher(SPACE, seed=2))
    assert [o.config for o in found.history] == [o.config for o in other.history]
    assert found.history[0].note["why"] == "nothing is known yet"
    assert found.history[-1].note["why"] == "trials report gradients"


def test_without_gradients_a_process_decides():
    searcher, history = AutoSearcher(SPACE, seed=2), observed(9)
    suggestion = searcher.propose(9, history, [])
    assert suggestion.note["searcher"] == "BayesSearcher"
    assert suggestion.config == BayesSearcher(SPACE, seed=2).propose(9, history, []).config


def test_gradients_that_are_known_to_be_wrong_are_none():
    history = observed(5, gradient={"x": [1.0, 1.0]}, gradient_error=2.0)
    assert AutoSearcher(SPACE).propose(5, history, []).note["searcher"] == "BayesSearcher"


def test_many_trials_are_for_an_evolution_strategy():
    pytest.importorskip("cmaes")
    note = AutoSearcher(SPACE).propose(601, observed(601), []).note
    assert note["searcher"] == "CMAESSearcher"
    assert note["why"] == "no gradients, and more than 600 trials"


def test_a_search_that_changes_its_searcher_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr("strategies.searchers.auto._MANY", 6)
    path = tmp_path / "state.json"
    whole = minimize(bowl, SPACE, trials=40, searcher=AutoSearcher(SPACE))
    minimize(bowl, SPACE, trials=21, searcher=AutoSearcher(SPACE), state_path=path)
    more = minimize(bowl, SPACE, trials=40, searcher=AutoSearcher(SPACE), state_path=path)
    assert [o.config for o in more.history] == [o.config for o in whole.history]
    assert len({o.note["searcher"] for o in whole.history}) == 3


def test_points_that_were_given_are_no_trials():
    given = [replace(item, number=None) for item in observed(601)]
    assert AutoSearcher(SPACE).propose(0, given, []).note["searcher"] == "BayesSearcher"


def test_every_door_takes_it_by_default():
    expected = minimize(bowl, SPACE, trials=7, searcher=AutoSearcher(SPACE, seed=2)).history
    local = minimize(bowl, SPACE, trials=7, seed=2).history
    assert [o.config for o in local] == [o.config for o in expected]
    assert local[-1].note["searcher"] == "BayesSearcher"

    optuna = pytest.importorskip("optuna")
    from strategies.optuna import HypergradSampler, suggest

    study = optuna.create_study(sampler=HypergradSampler(space=SPACE, seed=2))
    tried = []

    def objective(trial):
        tried.append(suggest(trial, SPACE))
        return bowl(tried[-1])

    study.optimize(objective, n_trials=7)
    assert tried == [o.config for o in expected]

    pytest.importorskip("ray")
    from strategies.ray import HypergradSearch

    search, tried = HypergradSearch(space=SPACE, metric="loss", mode="min", seed=2), []
    for name in "abcdefg":
        tried.append(search.suggest(name))
        search.on_trial_complete(name, {"loss": bowl(tried[-1]), "training_iteration": 1})
    assert tried == [o.config for o in expected]


@pytest.mark.parametrize("kind", [HypergradientSearcher, BayesSearcher])
def test_a_search_of_another_searcher_goes_on(tmp_path, kind):
    path = tmp_path / "state.json"
    minimize(bowl, SPACE, trials=6, searcher=kind(SPACE, seed=3), state_path=path)
    more = minimize(bowl, SPACE, trials=8, seed=3, state_path=path)
    assert len(more.history) == 8
    # A searcher that the user has named is no other.
    with pytest.raises(ValueError, match="'searcher': expected 'RandomSearcher'"):
        minimize(bowl, SPACE, trials=9, searcher=RandomSearcher(SPACE, seed=3), state_path=path)
