"""The region in which a surrogate is searched: how it grows, shrinks and starts anew."""

import numpy as np
import pytest

from strategies import BayesSearcher, Float, Observation, SearchSpace
from strategies.surrogates.trust_region import box, side


def observed(values, first=0):
    note = {"origin": "model"}
    return [
        Observation({"x": 0.5}, value, number=first + i, note=note)
        for i, value in enumerate(values)
    ]


def test_failures_shrink_the_region_and_successes_let_it_grow():
    start = side([])
    assert side(observed([5.0, 4.0])) == start  # no larger than at first
    shrunk = observed([5.0, 6.0, 6.0, 6.0, 6.0])
    assert side(shrunk) == start / 4
    assert side([*shrunk, *observed([4.0, 3.0], 5)]) == start / 2
    assert side([*shrunk, *observed([4.0, 9.0], 5)]) == start / 4
    assert side(shrunk[::-1]) == side(shrunk)


def test_failed_trials_are_failures_and_other_points_are_none():
    start = side([])
    assert side(observed([1.0, float("nan"), float("nan")])) == start / 2
    others = [Observation({"x": 0.5}, 2.0, number=i) for i in range(20)]
    assert side(others) == start


def test_a_region_that_has_collapsed_starts_anew():
    sides = [side(observed([0.0] + [1.0] * count)) for count in range(20)]
    assert min(sides) < 0.05
    assert sides[sides.index(min(sides)) :].count(1.0) > 0


def test_sides_are_in_proportion_to_the_length_scales():
    low, high = box(np.full(3, 0.5), np.array([0.1, 0.2, 0.4]), 0.2)
    assert high - low == pytest.approx([0.1, 0.2, 0.4])
    low, high = box(np.array([0.0, 1.0]), np.ones(2), 0.5)
    np.testing.assert_allclose([low, high], [[0.0, 0.75], [0.25, 1.0]])


def test_suggestions_stay_near_the_best_after_failures_with_gradients_only():
    space = SearchSpace({"x": Float(0, 1, shape=(6,))})
    rng = np.random.default_rng(0)
    history = []
    for number in range(12):
        x = np.full(6, 0.4) if number == 0 else rng.random(6)
        gradient = {"x": (2 * (x - 0.4)).tolist()}
        value = float((x - 0.4) @ (x - 0.4))
        note = {"origin": "model" if number else "startup"}
        history.append(Observation({"x": x.tolist()}, value, gradient, number=number, note=note))
    length = side(history)
    assert length < 0.05
    searcher = BayesSearcher(space, seed=0)
    near = np.array(searcher.propose(12, history, []).config["x"])
    # Length scales are not far from each other here.
    assert np.max(np.abs(near - 0.4)) < 2 * length
    assert searcher.propose(12, history[::-1], []) == searcher.propose(12, history, [])
