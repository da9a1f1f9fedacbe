"""What the hypergradient searcher remembers, how it compares offers, and what a history costs."""

import json

import numpy as np
import pytest

from strategies import Categorical, Float, HypergradientSearcher, Observation, SearchSpace
from strategies.ledger import Ledger
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.view import Offer

SPACE = SearchSpace({"x": Float(0, 1, shape=(3,)), "kind": Categorical(["a", "b"])})


def bowl(config):
    away = np.array(config["x"]) - 0.3
    return float(away @ away) + (config["kind"] == "a"), {"x": 2 * away}


def test_a_move_survives_json():
    move = Move("step", 3, "descent", level=1.5, promise=0.25, base=-7, length=0.1, cut=0.5)
    assert Move.of(json.loads(json.dumps(move.note()))) == move


@pytest.mark.parametrize(
    "note",
    [
        {},
        {"move": "step", "chain": 0, "base": 0, "from": 1.0, "length": 0.1, "decrease": 0.1},
        {"version": 99, "move": "step", "chain": 0},
        {"version": 2},
        {"version": 2, "move": "step", "chain": "zero"},
    ],
)
def test_a_note_of_another_version_is_ignored_and_its_point_kept(note):
    assert Move.of(note) is None
    space = SearchSpace({"x": Float(0, 1, shape=(3,))})
    told = Observation({"x": [0.35] * 3}, 0.0075, {"x": [0.1] * 3}, number=0, note=note)
    suggestion = HypergradientSearcher(space).propose(1, [told], [])
    # The gradient of the point is followed.
    assert suggestion.note["move"] == "step"
    assert suggestion.note["base"] == 0


def test_the_largest_expected_improvement_per_evaluation_wins():
    def offer(gain, deviation, cost=1.0, record=1.0):
        return Offer(Move("start", 0), gain, deviation, dict, cost, record)

    assert offer(1.0, 1e-12).worth == pytest.approx(1.0)
    assert offer(0.0, 1.0).worth == pytest.approx(1 / np.sqrt(2 * np.pi))
    assert offer(1.0, 1e-12, cost=4.0).worth == pytest.approx(0.25)
    assert offer(1.0, 1e-12, record=0.5).worth == pytest.approx(0.5)


def test_without_gradients_the_model_decides_after_the_default():
    space = SearchSpace({f"x{i}": Float(0, 1) for i in range(9)})
    ledger = Ledger(HypergradientSearcher(space))
    moves = []
    for _ in range(10):
        asked = ledger.ask()
        moves.append(asked.note["move"])
        value = float(sum((v - 0.2) ** 2 for v in asked.config.values()))
        ledger.tell(Observation(asked.config, value, number=asked.number))
    assert ledger.history[0].config == space.default()
    assert moves == ["start"] + 9 * ["model"]


def test_chains_that_take_part_are_bounded_by_the_design():
    from strategies.searchers.hypergradient.chains import chains
    from strategies.searchers.hypergradient.constants import CONSTANTS
    from strategies.searchers.hypergradient.points import point_of

    rng, points = np.random.default_rng(0), []
    for _ in range(300):
        config = SPACE.sample(rng)
        points.append(point_of(Observation(config, *bowl(config), point=SPACE.point(config))))
    graded = np.r_[True, True, True, False, False]
    assert len(chains(points, graded, 0.15, 10)) <= CONSTANTS.chains
