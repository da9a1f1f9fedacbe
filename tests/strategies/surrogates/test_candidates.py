"""Maximising an acquisition: what hardly matters is drawn at random, as far as one allows."""

import numpy as np
import pytest

from strategies import Categorical, Float, Int, SearchSpace
from strategies.surrogates.candidates import maximise

SPACE = SearchSpace({"matters": Float(0, 1), "hardly": Float(0, 1, shape=(2,)), "count": Int(1, 9)})
NOTHING = np.empty((0, SPACE.dimension))


def score(units):
    """Largest at 0.3 and at the upper bounds of the others, which are worth a tenth each."""
    return -100 * (units[:, 0] - 0.3) ** 2 + 0.1 * units[:, 1:].sum(axis=1)


def found(slack, seed):
    at = maximise(SPACE, score, NOTHING, NOTHING, np.random.default_rng(seed), slack=slack)
    return at, float(score(at[None])[0])


def test_without_slack_the_bounds_are_taken():
    point, value = found(0.0, 0)
    assert value == pytest.approx(0.3, abs=0.02)
    assert point[1:].min() > 0.85


def test_with_slack_what_hardly_matters_is_drawn_and_what_matters_is_not():
    points = np.array([found(1.0, seed)[0] for seed in range(40)])
    largest = found(0.0, 0)[1]
    assert min(found(1.0, seed)[1] for seed in range(40)) >= largest - 1.0 - 0.02
    assert np.abs(points[:, 0] - 0.3).max() < np.sqrt(1.3 / 100)
    for column in points[:, 1:].T:
        assert np.quantile(column, 0.25) < 0.4
        assert np.quantile(column, 0.75) > 0.6


def test_with_slack_nothing_is_offered_twice():
    space = SearchSpace({"kind": Categorical(["a", "b", "c"]), "count": Int(1, 3)})
    tried = np.empty((0, space.dimension))
    for seed in range(9):
        rng = np.random.default_rng(seed)
        point = maximise(space, lambda u: np.zeros(len(u)), tried, tried, rng, slack=1.0)
        assert point is not None
        tried = np.r_[tried, point[None]]
    assert len({tuple(row) for row in np.round(tried, 9)}) == 9
    rng = np.random.default_rng(9)
    assert maximise(space, lambda u: np.zeros(len(u)), tried, tried, rng, slack=1.0) is None
