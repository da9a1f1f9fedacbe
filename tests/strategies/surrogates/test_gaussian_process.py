"""The Gaussian process against finite differences, dense algebra and functions it must learn."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from strategies.surrogates.acquisition import (
    log_expected_improvement,
    log_expected_improvement_slopes,
)
from strategies.surrogates.gaussian_process import (
    GaussianProcess,
    Prior,
    Rows,
    _correlation,
    _of_values,
    fit,
)

SCALES = np.array([0.4, 0.7, 1.1])


def matern(p, q):
    r = np.linalg.norm((p - q) / SCALES)
    return (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r)


@pytest.fixture
def rows():
    """Values and derivatives in turn."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(10, 3))
    direction[::2] = 0
    return Rows(rng.random((10, 3)), direction, np.zeros(10))


def test_covariances_of_derivatives_are_derivatives_of_the_covariance(rows):
    step = 1e-4

    def stencil(i):
        if not rows.direction[i].any():
            return [(rows.x[i], 1.0)]
        shift = step * rows.direction[i]
        return [(rows.x[i] + shift, 0.5 / step), (rows.x[i] - shift, -0.5 / step)]

    matrix = _correlation(rows, SCALES)[0]
    for i in range(10):
        for j in range(10):
            if i != j:
                terms = [a * b * matern(p, q) for p, a in stencil(i) for q, b in stencil(j)]
                assert matrix[i, j] == pytest.approx(sum(terms), abs=1e-5)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_slope_in_the_length_scales_is_that_of_finite_differences(rows):
    weight = np.random.default_rng(1).normal(size=(10, 10))
    weight += weight.T
    slope = _correlation(rows, SCALES)[1](weight)
    for j in range(3):
        factor = np.where(np.arange(3) == j, np.exp(1e-5), 1)
        up = np.sum(weight * _correlation(rows, SCALES * factor)[0])
        down = np.sum(weight * _correlation(rows, SCALES / factor)[0])
        assert slope[j] == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_posterior_is_that_of_dense_algebra(rows):
    y = np.random.default_rng(2).normal(size=10)
    process = fit(rows, y, np.arange(3), prior=Prior(noise=1e-3))
    x = np.random.default_rng(3).random((4, 3))
    variance = np.where(rows.is_value > 0, process.noise, process.gradient_noise)
    gram = process.signal * _correlation(rows, process.scales)[0] + np.diag(variance)
    cross = process.signal * _of_values(x / process.scales, rows, process.scales)
    mean, deviation = process.predict(x)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(gram, y), rtol=1e-4, atol=1e-6)
    left = process.signal - np.sum(cross * np.linalg.solve(gram, cross.T).T, 1)
    np.testing.assert_allclose(deviation**2, left, rtol=1e-4, atol=1e-6)


def test_slopes_of_the_posterior_are_those_of_finite_differences(rows):
    process = fit(rows, np.sin(np.arange(10.0)), np.arange(3))
    x, step = np.array([0.3, 0.6, 0.2]), 1e-6
    mean, deviation, by_mean, by_deviation = process.predict_slopes(x, np.arange(3))
    for j in range(3):
        shift = step * np.eye(3)[j]
        (up, down), (up_sd, down_sd) = process.predict(np.stack([x + shift, x - shift]))
        assert by_mean[j] == pytest.approx((up - down) / (2 * step), rel=1e-5)
        assert by_deviation[j] == pytest.approx((up_sd - down_sd) / (2 * step), rel=1e-4)
    assert process.predict(x[None])[0][0] == pytest.approx(mean, rel=1e-9)
    assert process.predict(x[None])[1][0] == pytest.approx(deviation, rel=1e-9)


def test_gradients_teach_more_than_values():
    rng = np.random.default_rng(4)

    def truth(x):
        return np.sin(3 * x[:, 0]) + x[:, 1] ** 2 - x[:, 2] * x[:, 0]

    x, test = rng.random((8, 3)), rng.random((200, 3))
    slopes = np.stack([3 * np.cos(3 * x[:, 0]) - x[:, 2], 2 * x[:, 1], -x[:, 0]], axis=1)
    groups, prior = np.arange(3), Prior(noise=1e-4)
    values = fit(Rows.values(x), truth(x), groups, prior=prior)
    extra = Rows(np.repeat(x, 3, 0), np.tile(np.eye(3), (8, 1)), np.zeros(24))
    both = Rows.values(x).join(extra)
    informed = fit(both, np.r_[truth(x), slopes.ravel()], groups, prior=prior)

    def error(process: GaussianProcess) -> float:
        return float(np.sqrt(np.mean((process.predict(test)[0] - truth(test)) ** 2)))

    assert error(informed) < 0.25 * error(values)


def test_a_derivative_known_to_be_wrong_is_not_believed():
    x = np.linspace(0, 1, 6)[:, None]
    y = x[:, 0] ** 2
    lie = Rows(np.array([[0.5]]), np.array([[1.0]]), np.array([100.0]))
    honest = fit(Rows.values(x), y, np.zeros(1, int), prior=Prior(noise=1e-4))
    fooled = fit(
        Rows.values(x).join(lie), np.r_[y, -30.0], np.zeros(1, int), prior=Prior(noise=1e-4)
    )
    at = np.array([[0.45]])
    assert fooled.predict(at)[0] == pytest.approx(honest.predict(at)[0], abs=1e-2)


@pytest.mark.parametrize("z", [-30.0, -6.0, -1.0, 0.0, 2.0])
def test_expected_improvement_is_its_integral(z):
    expected, _ = quad(lambda t: (z - t) * norm.pdf(t), z - 12 - abs(z), z, epsabs=0, epsrel=1e-10)
    value = log_expected_improvement(np.array(-z), np.array(1.0), 0.0)
    assert value == pytest.approx(np.log(expected), rel=1e-7, abs=1e-9)


def test_expected_improvement_of_the_hopeless_overflows_nowhere():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        far = np.logspace(5, 100, 500)
        value = log_expected_improvement(far, np.ones(500), 0.0)
        by_mean, by_deviation = log_expected_improvement_slopes(far, np.ones(500), 0.0)
    np.testing.assert_allclose(value, -0.5 * far**2, rtol=1e-8)
    np.testing.assert_allclose(by_mean, -far, rtol=1e-8)
    np.testing.assert_allclose(by_deviation, far**2, rtol=1e-8)


@pytest.mark.parametrize("z", [-2000.0, -49.0, -5.0, 0.0, 3.0])
def test_expected_improvement_slopes(z):
    def at(mean, deviation):
        return float(log_expected_improvement(np.array(mean), np.array(deviation), 0.0))

    by_mean, by_deviation = log_expected_improvement_slopes(np.array(-z), np.array(1.0), 0.0)
    step = 1e-5
    assert by_mean == pytest.approx((at(-z + step, 1) - at(-z - step, 1)) / (2 * step), rel=1e-4)
    numeric = (at(-z, 1 + step) - at(-z, 1 - step)) / (2 * step)
    assert by_deviation == pytest.approx(numeric, rel=1e-4)


def test_left_out_is_what_the_others_predict():
    rng = np.random.default_rng(3)
    x, y = rng.random((8, 2)), rng.normal(size=8)
    process = fit(Rows.values(x), y, np.arange(2))
    for i in range(8):
        others = np.arange(8) != i
        mean, _ = process.condition(Rows.values(x[others]), y[others]).predict(x[i : i + 1])
        assert process.left_out()[i] == pytest.approx(y[i] - mean[0], rel=1e-4, abs=1e-6)
