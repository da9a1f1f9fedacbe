"""Desirability functions: golden values, monotonicity, Pareto optimality of the choice."""

import numpy as np
import pytest
from scipy.optimize import minimize

from strategies.desirability import (
    Arbitrary,
    Box,
    Category,
    Larger,
    OverallDesirability,
    Smaller,
    Target,
)


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


def reaction(x):
    """Conversion and activity of Box, Hunter and Hunter's reaction, as in Kuhn (2016)."""
    a, b, c = x
    return {
        "conversion": 81.09 + 1.0284 * a + 4.043 * b + 6.2037 * c - 1.8366 * a**2
        + 2.9382 * b**2 - 5.1915 * c**2 + 2.2150 * a * b + 11.375 * a * c - 3.875 * b * c,
        "activity": 59.85 + 3.583 * a + 0.2546 * b + 2.2298 * c + 0.83479 * a**2
        + 0.07484 * b**2 + 0.05716 * c**2 - 0.3875 * a * b - 0.375 * a * c + 0.3125 * b * c,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("region", "best", "at"),
    [
        ("cube", 0.94251, (-0.5117, 1.682, -0.5864)),
        ("ball", 0.85815, (-0.5095, 1.5034, -0.5561)),
    ],
)
def test_the_published_optimum_of_the_reaction(region, best, at):
    overall = OverallDesirability(
        {"conversion": Larger(80, 97), "activity": Target(55, 57.5, 60)}, floor=0.0
    )
    assert overall(reaction(at)) == pytest.approx(best, abs=5e-5)

    def loss(x):
        # The nearest place of the region of the design.
        if region == "cube":
            return overall.loss(reaction(np.clip(x, -1.682, 1.682)))
        return overall.loss(reaction(x * min(1.0, 1.682 / max(np.linalg.norm(x), 1e-9))))

    starts = np.random.default_rng(0).uniform(-1, 1, (12, 3))
    options = {"maxiter": 400, "xatol": 1e-5, "fatol": 1e-7}
    found = [minimize(loss, x, method="Nelder-Mead", options=options).fun for x in starts]
    assert 1 - min(found) == pytest.approx(best, abs=1e-3)
    assert 1 - min(found) <= best + 5e-5


def test_boxes_tables_and_categories():
    assert [Box(1, 2)(y) for y in (0.9, 1, 2, 2.1)] == [0, 1, 1, 0]
    table = Arbitrary([0, 1, 3], [0.2, 1.0, 0.0])
    assert [table(y) for y in (-1, 0.5, 1, 2, 9)] == pytest.approx([0.2, 0.6, 1.0, 0.5, 0.0])
    kinds = Category({"adam": 1.0, "sgd": 0.5})
    assert [kinds(y) for y in ("adam", "sgd", "lbfgs")] == [1, 0.5, 0]
    overall = OverallDesirability({"kind": kinds, "a": Larger(0, 1)})
    assert overall({"kind": "sgd", "a": 0.5}) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "function",
    [Larger(1, 3, 2), Smaller(0, 2, 0.5), Target(0, 2, 3, 1, 3), Arbitrary([0, 1, 4], [0, 1, 0.5])],
)
def test_uninformative_is_the_mean_over_the_range(function):
    low, high = {Larger: (1, 3), Smaller: (0, 2), Target: (0, 3), Arbitrary: (0, 4)}[type(function)]
    grid = np.linspace(low, high, 4001)
    assert function.uninformative == pytest.approx(np.mean([function(y) for y in grid]), abs=1e-3)


def test_missing_values_and_tolerances():
    parts = {"a": Larger(0, 1), "kind": Category({"x": 1.0, "y": 0.5}), "box": Box(0, 1)}
    measured = {"a": None, "kind": None, "box": float("nan")}
    lenient = OverallDesirability(parts, missing="uninformative")
    assert lenient(measured) == pytest.approx((0.5 * 0.75 * 0.5) ** (1 / 3))
    assert OverallDesirability(parts)(measured) == pytest.approx(0.01)
    # Diverged is not missing.
    assert lenient({"a": float("inf"), "kind": "x", "box": 1}) == pytest.approx(0.01 ** (1 / 3))
    tolerant = OverallDesirability(parts, floor=0.0, tolerances={"a": 0.2})
    assert tolerant({"a": -1, "kind": "x", "box": 1}) == pytest.approx(0.2 ** (1 / 3))
    assert tolerant({"a": 1, "kind": "z", "box": 1}) == 0


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
        (lambda: Box(2, 1), "Box: expected bounds in ascending order"),
        (lambda: Arbitrary([0, 0], [0, 1]), "Arbitrary: expected two or more ascending responses"),
        (lambda: Arbitrary([0, 1], [0]), "Arbitrary: expected 2 desirabilities"),
        (lambda: Category({"a": 2.0}), r"Category: expected desirabilities in \[0, 1\]"),
        (lambda: Category({}), "Category: expected at least one value"),
        (
            lambda: OverallDesirability({"a": Larger(0, 1)}, tolerances={"a": 1.0}),
            "'a': expected a tolerance",
        ),
        (lambda: OverallDesirability({"a": Box(0, 1)}, missing="no"), "missing: expected 'worst'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
