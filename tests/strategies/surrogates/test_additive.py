"""The additive surrogate: it is the Gaussian process that it claims to be, and sees valleys."""

import numpy as np
import pytest

from strategies.surrogates import additive
from strategies.surrogates.additive import fit_additive


def bumpy(x):
    """A sum of functions of one coordinate with many valleys, and its gradient."""
    away = 10 * (x - [0.32, 0.61])
    value = np.sum(away**2 + 10 * (1 - np.cos(2 * np.pi * away)), axis=-1)
    return value, 10 * (2 * away + 20 * np.pi * np.sin(2 * np.pi * away))


def spread(count, size, seed=0):
    """Evenly spread points."""
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(count) for _ in range(size)]).T
    return (rows + rng.random((count, size))) / count


def test_it_is_the_posterior_of_all_values_and_derivatives():
    x = spread(6, 2)
    values, gradients = bumpy(x)
    base = int(np.argmin(values))
    found = fit_additive(x, values, gradients, np.zeros(6), base)
    parts, noise, *_ = additive.choose(x, gradients, np.zeros(6))

    def kernel(a, b):
        return additive._kernel(parts, a[:, None] - b)

    # One vector of everything: at each place of coordinate 0, of coordinate 1, the differences of
    # the values, the derivatives.
    scales = []
    for i in range(2):
        matrix = kernel(x[:, i], x[:, i])[2] + noise * np.eye(6)
        scales.append(gradients[:, i] @ np.linalg.solve(matrix, gradients[:, i]) / 6)
    count = len(found.places)

    def joint(i, p, q):
        """Covariance of `h_i` at `p` and `q`, both relative to the base."""
        at = x[base : base + 1, i]
        k = kernel(p, q)[0] - kernel(p, at)[0] - kernel(at, q)[0] + kernel(at, at)[0]
        return scales[i] * k

    def slope(i, p):
        at = x[base : base + 1, i]
        return scales[i] * (kernel(p, x[:, i])[1] - kernel(at, x[:, i])[1])

    others = [j for j in range(6) if j != base]
    top = sum(joint(i, x[:, i], x[:, i]) for i in range(2))[np.ix_(others, others)]
    across = np.concatenate([slope(i, x[:, i])[others] for i in range(2)], axis=1)
    derivatives = np.zeros((12, 12))
    for i in range(2):
        block = scales[i] * (kernel(x[:, i], x[:, i])[2] + noise * np.eye(6))
        derivatives[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] = block
    seen = np.block([[top, across], [across.T, derivatives]])
    data = np.r_[(values - values[base])[others], gradients.T.ravel()]
    for i in range(2):
        places = found.places[:, i]
        cross = np.zeros((count, len(data)))
        cross[:, :5] = joint(i, places, x[:, i])[:, others]
        cross[:, 5 + 6 * i : 11 + 6 * i] = slope(i, places)
        mean = cross @ np.linalg.solve(seen, data)
        variance = np.diag(joint(i, places, places)) - np.sum(
            cross * np.linalg.solve(seen, cross.T).T, axis=1
        )
        size = np.ptp(mean)
        np.testing.assert_allclose(found.mean[:, i], mean, atol=1e-4 * size)
        np.testing.assert_allclose(
            found.deviation[:, i], np.sqrt(np.maximum(variance, 0)), atol=1e-2 * size
        )


def test_a_dozen_gradients_tell_a_hundred_valleys_apart():
    x = spread(12, 2)
    values, gradients = bumpy(x)
    found = fit_additive(x, values, gradients, np.zeros(12), int(np.argmin(values)))
    best = [found.places[np.argmin(found.mean[:, i]), i] for i in range(2)]
    assert found.surprise < 3
    np.testing.assert_allclose(best, [0.32, 0.61], atol=0.01)
    assert bumpy(np.array(best))[0] < 1 < values.min()


def test_functions_that_are_not_additive_are_told():
    x = spread(12, 2)
    rise = x[:, 1] - x[:, 0] ** 2
    values = 100 * rise**2 + (1 - x[:, 0]) ** 2
    gradients = np.stack([-400 * x[:, 0] * rise - 2 * (1 - x[:, 0]), 200 * rise], axis=1)
    found = fit_additive(x, values, gradients, np.zeros(12), int(np.argmin(values)))
    assert found is None


def test_a_descent_is_no_evidence_of_a_sum():
    """Few points on a line: a sum explains their gradients, as any smooth function does."""
    x = np.linspace(0.5, 0.6, 5)[:, None] + np.array([0.0, 0.1])
    values = np.prod(x, axis=1)
    found = fit_additive(x, values, x[:, ::-1], np.zeros(5), 0)
    assert found is None


def test_ripples_that_recur_are_seen_through():
    """Ackley's, thirty to a side: not additive, and their slopes hide that of the hole."""
    target = np.array([0.3, 0.45, 0.6, 0.5, 0.7])
    x = spread(16, 5)
    away = 30 * (x - target)
    root = np.sqrt(np.mean(away**2, axis=1, keepdims=True))
    ripple = np.exp(np.mean(np.cos(2 * np.pi * away), axis=1, keepdims=True))
    values = (-20 * np.exp(-0.2 * root) - ripple)[:, 0]
    hole = 4 * np.exp(-0.2 * root) * away / root
    gradients = 6 * (hole + 2 * np.pi * ripple * np.sin(2 * np.pi * away))
    found = fit_additive(x, values, gradients, np.zeros(16), int(np.argmin(values)))
    best = found.places[np.argmin(found.mean, axis=0), np.arange(5)]
    nearest = x[np.argmin(values)]
    assert np.linalg.norm(best - target) < 0.5 * np.linalg.norm(nearest - target)
    # Neither would do without the other: in the trough of a ripple, and of one near the hole.
    assert np.median(np.abs((30 * (best - target) + 0.5) % 1 - 0.5)) < 0.1


def test_reported_errors_excuse_gradients():
    x = spread(12, 2)
    values, gradients = bumpy(x)
    noisy = gradients * (1 + 0.2 * np.random.default_rng(0).standard_normal(gradients.shape))
    base = int(np.argmin(values))
    assert fit_additive(x, values, noisy, np.full(12, 0.2), base) is not None


@pytest.mark.parametrize("size", [1, 7])
def test_a_bowl(size):
    x = spread(5, size)
    target = np.linspace(0.3, 0.7, size)
    values = np.sum((x - target) ** 2, axis=1)
    found = fit_additive(x, values, 2 * (x - target), np.zeros(5), int(np.argmin(values)))
    best = found.places[np.argmin(found.mean, axis=0), np.arange(size)]
    np.testing.assert_allclose(best, target, atol=0.01)
