"""Desirability functions: golden values, monotonicity, Pareto optimality of the choice."""

import numpy as np
import pytest

from strategies.desirability import Larger, OverallDesirability, Smaller, Target


def test_golden_values():
    assert Larger(0.5, 1.0)(0.8) == pytest.approx(0.6)
    assert Larger(0.5, 1.0, shape=2)(0.8) == pytest.approx(0.36)
    overall = OverallDesirability({"a": Larger(0, 1), "b": Larger(0, 1)})
    assert overall({"a": 0.6, "b": 0.25}) == pytest.approx(0.3872983346)


def test_ends_and_target():
    assert [Larger(0, 1)(y) for y in (-1, 0, 1, 2)] == [0, 0, 1, 1]
    assert [Smaller(0, 1)(y) for y in (-1, 0, 1, 2)] == [1, 1, 0, 0]
    target = Target(0, 2, 3, shape_above=2)
    assert [target(y) for y in (-1, 1, 2, 2.5, 4)] == pytest.approx([0, 0.5, 1, 0.25, 0])


def test_weights_are_exponents():
    overall = OverallDesirability({"a": Larger(0, 1), "b": Larger(0, 1)}, weights={"a": 3})
    assert overall({"a": 0.5, "b": 0.25}) == pytest.approx((0.5**3 * 0.25) ** 0.25)


def test_the_choice_is_pareto_optimal():
    points = np.random.default_rng(0).random((300, 2))
    overall = OverallDesirability({"accuracy": Larger(-0.1, 1.1), "time": Smaller(-0.1, 1.1)})
    losses = [overall.loss({"accuracy": a, "time": t}) for a, t in points]
    accuracy, time = points[int(np.argmin(losses))]
    dominates = (points[:, 0] >= accuracy) & (points[:, 1] <= time)
    assert dominates.sum() == 1


def test_floor_keeps_a_slope_and_zero_kills():
    parts = {"a": Larger(0, 1), "b": Larger(0, 1)}
    measured = [{"a": -1.0, "b": b} for b in (0.2, 0.4)]
    assert [OverallDesirability(parts, floor=0)(m) for m in measured] == [0, 0]
    low, high = (OverallDesirability(parts)(m) for m in measured)
    assert 0 < low < high
    assert OverallDesirability(parts)({"a": float("nan"), "b": 1.0}) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Larger(1, 1), "Larger: expected bounds in ascending order, received 1, 1"),
        (lambda: Smaller(0, 1, shape=0), "Smaller: expected a positive shape, received 0"),
        (lambda: OverallDesirability({}), "responses: expected at least one"),
        (
            lambda: OverallDesirability({"a": Larger(0, 1)}, weights={"b": 1}),
            "'b': expected one of",
        ),
        (
            lambda: OverallDesirability({"a": Larger(0, 1)}, weights={"a": 0}),
            "'a': expected a positive weight",
        ),
        (lambda: OverallDesirability({"a": Larger(0, 1)})({}), "'a': expected a measured response"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
