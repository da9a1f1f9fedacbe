"""Sobol, grid and regularised evolution."""

import numpy as np
import pytest

from strategies import (
    Categorical,
    Choice,
    EvolutionSearcher,
    Float,
    GridSearcher,
    Int,
    Observation,
    Ordinal,
    RandomSearcher,
    SearchSpace,
    Simplex,
    SobolSearcher,
)
from strategies.ledger import Ledger

TREE = {
    "x": Float(1e-3, 1, log=True),
    "model": Choice({"linear": {}, "mlp": {"depth": Int(1, 3), "act": Categorical(["a", "b"])}}),
}


def test_sobol_points_are_balanced_and_reproducible():
    space = SearchSpace({"x": Float(0, 1, shape=(3,)), "c": Categorical(list("abcd"))})
    ledger = Ledger(SobolSearcher(space, seed=3))
    configs = [ledger.ask().config for _ in range(16)]
    values = np.array([config["x"] for config in configs])
    for i in range(3):
        assert sorted(np.floor(values[:, i] * 16)) == list(range(16))
    assert sorted(config["c"] for config in configs) == sorted("abcd" * 4)
    assert SobolSearcher(space, seed=3).propose(11, [], []).config == configs[11]
    assert Ledger(SobolSearcher(space, seed=4)).ask().config != configs[0]
    with pytest.raises(ValueError, match="at most 21201"):
        SobolSearcher(SearchSpace({"x": Float(0, 1, shape=(30000,))}))


def test_grid_covers_every_combination_once():
    ledger = Ledger(GridSearcher(SearchSpace(TREE), points=3, seed=1))
    assert ledger.searcher.size == 3 * (1 + 3 * 2)
    configs = [ledger.ask().config for _ in range(ledger.searcher.size)]
    assert len({repr(config) for config in configs}) == ledger.searcher.size
    logs = {round(np.log10(config["x"]), 6) for config in configs}
    assert logs == {-3.0, -1.5, 0.0}
    # Then it goes on with draws.
    assert round(np.log10(ledger.ask().config["x"]), 6) not in logs


def test_grid_of_chosen_values():
    space = SearchSpace(
        {"mix": Simplex(3), "o": Ordinal([8, 16, 32]), "n": Int(1, 100, log=True)},
        constraints={"small": lambda c: c["n"] * c["o"] < 1000},
    )
    ledger = Ledger(
        GridSearcher(
            space, points={"mix": [[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]], "o": [8, 32], "n": 3}, seed=0
        )
    )
    assert ledger.searcher.values["n"] == [1, 10, 100]
    assert ledger.searcher.size == 2 * (2 * 3 - 1)
    for points, message in [
        ({"mix": 3}, "'points': expected a list of values for the array 'mix'"),
        ({"mox": 3}, "'points': expected keys of"),
        (0, "'points': expected an integer from 1 to 1000000 or a list"),
        ({"mix": [[1.0, 1.0, 1.0]]}, "'mix': expected 3 numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            GridSearcher(space, points=points)


def rugged(config):
    mlp = config["model"].get("mlp")
    value = abs(np.log10(config["x"]) + 2)
    return value + (1.0 if mlp is None else 0.3 * abs(mlp["depth"] - 3) + (mlp["act"] == "a"))


def search(ledger, count):
    for _ in range(count):
        asked = ledger.ask()
        ledger.tell(Observation(asked.config, rugged(asked.config), number=asked.number))
    return ledger.best.value


def test_evolution_beats_random_search():
    space = SearchSpace(TREE)
    evolved = [search(Ledger(EvolutionSearcher(space, seed=s)), 150) for s in range(9)]
    random = [search(Ledger(RandomSearcher(space, seed=s)), 150) for s in range(9)]
    assert np.median(evolved) < 0.6 * np.median(random)


def test_evolution_changes_one_thing_and_draws_what_comes_into_existence():
    space = SearchSpace(TREE)
    ledger = Ledger(EvolutionSearcher(space, seed=0, population=4, contest=2))
    search(ledger, 40)
    history = ledger.history
    grown = 0
    for item in history[4:]:
        parent = history[item.note["parent"]]
        ours, theirs = space.flatten(item.config), space.flatten(parent.config)
        differing = {path for path in ours if path in theirs and ours[path] != theirs[path]}
        assert differing == {item.note["changed"]}
        if ours.keys() > theirs.keys():
            grown += 1
            assert item.note["changed"] == "model/kind"
        assert parent.number >= item.number - 4
    assert grown > 0


@pytest.mark.parametrize("options", [{"population": 1}, {"contest": 0}, {"contest": 21}])
def test_bad_evolution_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EvolutionSearcher(SearchSpace(TREE), **options)
