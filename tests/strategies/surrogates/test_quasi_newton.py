"""The quasi-Newton model: its matrix, its minimiser in the box, its region, and descent by all."""

import numpy as np
import pytest
from scipy.optimize import minimize

from strategies.surrogates.quasi_newton import (
    Model,
    Outcome,
    Region,
    first_matrix,
    model_of,
    pair,
    step,
)

RNG = np.random.default_rng(0)


def matrix(size, condition):
    basis = np.linalg.qr(RNG.standard_normal((size, size)))[0]
    return basis * np.geomspace(1.0, condition, size) @ basis.T


def pairs_of(hessian, count):
    return [pair(s, hessian @ s) for s in RNG.standard_normal((count, len(hessian)))]


def test_the_matrix_is_that_of_the_bfgs_formula():
    hessian = matrix(4, 10.0)
    pairs = pairs_of(hessian, 3)
    s, y = pairs[-1]
    expected = np.eye(4) * (s @ y) / (s @ s)
    for s, y in pairs:
        bs = expected @ s
        expected = expected + np.outer(y, y) / (s @ y) - np.outer(bs, bs) / (s @ bs)
    model = model_of(np.ones(4), pairs, 0.1)
    received = np.stack([model(v) for v in np.eye(4)])
    np.testing.assert_allclose(received, expected, rtol=1e-10)
    np.testing.assert_allclose(model(s), y, rtol=1e-10)


@pytest.mark.parametrize("cut", [1.0, 0.3])
def test_the_step_is_the_minimiser_in_the_box(cut):
    hessian = matrix(6, 20.0)
    unit, gradient = RNG.uniform(0, 1, 6), RNG.standard_normal(6)
    pairs = pairs_of(hessian, 5)
    model = model_of(gradient, pairs, 0.5)
    dense = np.stack([model(v) for v in np.eye(6)]) / cut
    bound = 0.5 * cut
    bounds = list(zip(np.maximum(-bound, -unit), np.minimum(bound, 1 - unit), strict=True))
    truth = minimize(
        lambda s: gradient @ s + 0.5 * s @ dense @ s,
        np.zeros(6),
        jac=lambda s: gradient + dense @ s,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-15, "gtol": 1e-12},
    )
    found = step(unit, gradient, model, Region(0.5, cut))
    np.testing.assert_allclose(found.decrease, -truth.fun, rtol=1e-4)
    assert np.all((unit + found.s >= 0) & (unit + found.s <= 1))
    assert np.abs(found.s).max() <= bound * (1 + 1e-12)


def test_negative_curvature_makes_no_pair():
    assert pair(np.ones(2), -np.ones(2)) is None
    assert pair(np.ones(2), np.zeros(2)) is None
    assert pair(np.ones(2), np.ones(2)) is not None


def test_the_first_step_goes_to_the_edge_of_the_region():
    gradient = np.array([1.0, -2.0, 0.0])
    found = step(np.full(3, 0.5), gradient, model_of(gradient, [], 0.1), Region(0.1))
    np.testing.assert_allclose(found.s, [-0.05, 0.1, 0.0], rtol=1e-6)


def test_a_cut_is_forgotten_after_the_next_success():
    region = Region(0.2)
    # Down by 1 at first and up by 3 in the end: the parabola through it is lowest at an eighth.
    shorter = region.shortened(Outcome(0.2, 0.5, -3.0, slope=-1.0))
    assert shorter == Region(0.2, 0.125)
    assert region.shortened(Outcome(0.2, 0.5, -np.inf, slope=-1.0)).cut == 0.1
    assert shorter.after(Outcome(0.025, 0.1, 0.05)) == Region(0.2)
    # A good step at the edge widens the region, one inside does not.
    assert region.after(Outcome(0.2, 0.1, 0.1)).radius == 0.4
    assert region.after(Outcome(0.1, 0.1, 0.1)).radius == 0.2


def test_the_slope_at_its_end_says_more_of_a_failed_step():
    """Of `-s + s² (1 + 3 s)` a cubic knows the minimum, a parabola does not."""
    failed = Outcome(1.0, 0.5, -3.0, slope=-1.0, end=10.0)
    # The derivative 9 s² + 2 s - 1 vanishes at 0.24025; the parabola's minimum is 0.125.
    assert failed.shortened() == pytest.approx(0.5 * (0.125 + 0.2402531), rel=1e-6)
    # Where the cubic is the nearer one, it is taken: of `-s + 2 s²` both are the same.
    assert Outcome(1.0, 0.5, -1.0, slope=-1.0, end=3.0).shortened() == pytest.approx(0.25)
    assert Outcome(1.0, 0.5, -1.0, slope=-1.0).shortened() == pytest.approx(0.25)


def test_the_first_matrix_is_chosen_by_what_bfgs_would_have_predicted():
    """The inner products in `first_matrix` are those of the matrices themselves."""
    pairs = pairs_of(matrix(6, 1e3), 5)

    def surprise(first_of):
        total = 0.0
        for j in range(1, 5):
            s, y = pairs[j]
            predicted = s @ Model(first_of(pairs[:j]), 6, pairs[:j])(s)
            total += abs(np.log(predicted / (s @ y)))
        return total

    def last(known):
        s, y = known[-1]
        return (s @ y) / (s @ s)

    def mean(known):
        return np.exp(np.mean([np.log(last([one])) for one in known]))

    expected = min((last, mean), key=surprise)(pairs)
    assert first_matrix(pairs) == pytest.approx(expected)


def test_an_ill_conditioned_bowl_is_descended_without_a_searcher():
    """Model, region and step by themselves: 40 evaluations at a condition of a million."""
    hessian, target = matrix(5, 1e6), RNG.uniform(0.2, 0.8, 5)

    def evaluate(x):
        return 0.5 * (x - target) @ hessian @ (x - target), hessian @ (x - target)

    x, region, pairs = np.full(5, 0.5), Region(0.15), []
    value, gradient = first, _ = evaluate(x)
    for _ in range(40):
        found = step(x, gradient, model_of(gradient, pairs, region.radius), region)
        new_value, new_gradient = evaluate(x + found.s)
        outcome = Outcome(
            np.abs(found.s).max(), found.decrease, value - new_value, float(gradient @ found.s)
        )
        if new_value >= value:
            region = region.shortened(outcome)
            continue
        if (one := pair(found.s, new_gradient - gradient)) is not None:
            pairs.append(one)
        region, x, value, gradient = region.after(outcome), x + found.s, new_value, new_gradient
    assert value < 1e-8 * first


@pytest.mark.parametrize("held", ["last", "mean"])
def test_the_first_matrix_is_the_one_that_predicted_better(held):
    """Steps along axes of equal curvature after a stiff one, or of curvatures that alternate."""
    curvatures = [100.0, 1.0, 1.0, 1.0, 1.0, 1.0] if held == "last" else [4.0, 1.0] * 3
    pairs = [pair(s, c * s) for c, s in zip(curvatures, np.eye(8), strict=False)]
    model = model_of(np.ones(8), pairs, 0.1)
    expected = curvatures[-1] if held == "last" else float(np.exp(np.log(curvatures).mean()))
    assert model.first == pytest.approx(expected)
