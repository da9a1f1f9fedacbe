"""Tree search and n-grams: the tree of a space, UCT by hand, learning, purity."""

import numpy as np
import pytest

from strategies import (
    Categorical,
    Choice,
    Float,
    Int,
    Ledger,
    NGramSearcher,
    Observation,
    Ordered,
    Ordinal,
    RandomSearcher,
    SearchSpace,
    Simplex,
    TreeSearcher,
)
from strategies.searchers.decisions import Decisions

TREE = SearchSpace(
    {
        "model": Choice(
            {
                "linear": {"penalty": Float(1e-4, 1.0, log=True)},
                "net": {
                    "depth": Int(1, 3),
                    "act": Categorical(["a", "b", "c"]),
                    "first": Int(2, 512, log=True),
                    "second": Int(2, 512, log=True, when={"model/net/depth": [2, 3]}),
                },
            }
        ),
        "rate": Ordinal([1, 2, 4, 8, 16, 32, 64, 128]),
        "mix": Simplex(3),
        "ends": Ordered(0.0, 1.0, 2),
        "fine": Float(0.0, 1.0, step=0.01, shape=(2,)),
    }
)
SEARCHERS = {
    "tree": lambda **o: TreeSearcher(TREE, **o),
    "plain": lambda **o: TreeSearcher(TREE, bisection=False, **o),
    "ngrams": lambda **o: NGramSearcher(TREE, **o),
}


@pytest.mark.parametrize("bisection", [True, False])
def test_the_decisions_of_a_configuration_lead_back_to_its_cells(bisection):
    decisions = Decisions(TREE, 8, bisection)
    rng = np.random.default_rng(0)
    for _ in range(20):
        flat = TREE.flatten(TREE.sample(rng))
        moves = decisions.moves(flat)
        assert {path for path, *_ in moves} <= flat.keys()
        left = iter(moves)

        def choose(options, left=left):
            move = next(left)
            assert move in options
            return move

        again = TREE.flatten(decisions.grow(choose, rng))
        assert next(left, None) is None
        assert decisions.moves(again) == moves
        for path in ("model/kind", "model/net/act", "model/net/depth", "rate"):
            assert again.get(path) == flat.get(path)
        if bisection:
            assert sum(path == "rate" for path, *_ in moves) == 3


def test_no_cell_is_empty():
    space = SearchSpace(
        {"n": Int(1, 40, log=True), "m": Int(1, 3), "w": Categorical([1, 2, 3], weights=[1, 0, 1])}
    )
    cells = Decisions(space, 16, bisection=False).cells
    assert len(cells["m"][0]) == 3
    assert cells["w"][0].low.tolist() == [0, 2]
    hit = {cells["n"][0].place(float(space.domains["n"].encode(n)[0])) for n in range(1, 41)}
    assert hit == set(range(len(cells["n"][0])))


def trials(*values):
    """Trials of `x` and `y` with their values, numbers from 0."""
    return [
        Observation({"x": x, "y": y, "z": 0.1 * i}, v, number=i)
        for i, (x, y, v) in enumerate(values)
    ]


def test_upper_confidence_bounds_by_hand():
    space = SearchSpace(
        {"x": Categorical(["a", "b"]), "y": Categorical(["c", "d", "e"]), "z": Float(0, 1)}
    )
    searcher = TreeSearcher(space, exploration=0.5)
    # Rewards 1, 1/2, 0. "a": mean 3/4 of two visits, "b": 0 of one; ln 3 = 1.0986.
    # a: 0.75 + 0.5 sqrt(2 * 1.0986 / 2) = 1.274;  b: 0 + 0.5 sqrt(2 * 1.0986) = 0.741.
    history = trials(("a", "c", 0.0), ("a", "d", 1.0), ("b", "c", 2.0))
    found = [searcher.propose(n, history, []).config for n in range(3, 40)]
    assert {config["x"] for config in found} == {"a"}
    # Below "a" only "d" was added as a node: "c" and "e" have never been answered there.
    first = [TreeSearcher(space, seed=s).propose(1, history[:1], []).config["x"] for s in range(9)]
    assert set(first) == {"b"}
    # A large weight of what is rare: b: 0 + 3 * 1.482 = 4.45, a: 0.75 + 3 * 1.048 = 3.89.
    bold = TreeSearcher(space, exploration=3.0)
    assert bold.propose(3, history, []).config["x"] == "b"


def value(config):
    """Best: a deep net with `c`, `first` about 64, `rate` 32."""
    off = 0.3 * abs(np.log2(config["rate"]) - 5) + 0.1 * abs(config["fine"][0] - 0.5)
    net = config["model"].get("net")
    if net is None:
        return off + 4.0
    return (
        off + (net["act"] != "c") + 0.4 * (3 - net["depth"]) + 0.3 * abs(np.log2(net["first"]) - 6)
    )


def searched(searcher, trials=48, value=value):
    ledger = Ledger(searcher)
    for _ in range(trials):
        asked = ledger.ask()
        ledger.tell(Observation(asked.config, value(asked.config), number=asked.number))
    return ledger


def test_above_random_search_in_a_conditional_space():
    seeds = range(6)
    ends = {
        name: np.mean([searched(make(seed=s)).best.value for s in seeds])
        for name, make in {"random": lambda **o: RandomSearcher(TREE, **o), **SEARCHERS}.items()
    }
    assert ends["tree"] < ends["random"]
    assert ends["ngrams"] < 0.8 * ends["random"]


@pytest.mark.parametrize("name", SEARCHERS)
def test_pure_and_resumable(name, tmp_path):
    make = SEARCHERS[name]
    ledger = searched(make(seed=4), 12)
    pending = [ledger.ask(), ledger.ask()]
    expected = make(seed=4).propose(14, ledger.history, pending).config
    assert make(seed=4).propose(14, ledger.history[::-1], pending[::-1]).config == expected
    assert make(seed=5).propose(14, ledger.history, pending).config != expected
    ledger.save(tmp_path / "search.json")
    again = Ledger(make(seed=4))
    again.restore(tmp_path / "search.json")
    assert again.ask().config == expected


@pytest.mark.parametrize("name", SEARCHERS)
def test_failures_and_constraints(name):
    space = SearchSpace(
        {"x": Int(1, 20), "y": Int(1, 20)}, constraints={"sum": lambda c: c["x"] + c["y"] <= 12}
    )
    kind = {"tree": TreeSearcher, "plain": TreeSearcher, "ngrams": NGramSearcher}[name]
    ledger = Ledger(kind(space, first=[{"x": 3, "y": 4}]))
    for n in range(25):
        asked = ledger.ask()
        assert asked.config["x"] + asked.config["y"] <= 12
        failed = asked.config["x"] < 3
        ledger.tell(Observation(asked.config, None if failed else 1.0 / (n + 1), number=n))
    assert ledger.history[0].config == {"x": 3, "y": 4}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TreeSearcher, {"exploration": 0.0}),
        (TreeSearcher, {"cells": 1}),
        (TreeSearcher, {"bisection": 2}),
        (NGramSearcher, {"longest": 0}),
        (NGramSearcher, {"candidates": 1}),
        (NGramSearcher, {"chance": 1.5}),
        (NGramSearcher, {"penalty": 0.0}),
    ],
)
def test_bad_options(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(TREE, **options)
