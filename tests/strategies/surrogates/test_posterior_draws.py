"""Functions drawn from a process are distributed as it says."""

import numpy as np

from strategies.surrogates.gaussian_process import Rows, fit
from strategies.surrogates.posterior_draws import draw


def test_draws_have_the_mean_and_the_deviation_of_the_process():
    rng = np.random.default_rng(0)
    x = rng.random((8, 2))
    slopes = Rows(x[:3], np.tile([[1.0, 0.0]], (3, 1)), np.zeros(3))
    rows = Rows.values(x).join(slopes)
    y = np.r_[np.sin(5 * x[:, 0]), 5 * np.cos(5 * x[:3, 0])]
    process = fit(rows, y, np.arange(2))
    points = rng.random((20, 2))
    mean, deviation = process.predict(points)
    # A draw has some features of its own: many draws of several sets of them.
    found = np.concatenate([draw(process, 200, rng)(points) for _ in range(10)], axis=1)
    assert np.abs(found.mean(1) - mean).max() < 0.1 * deviation.max()
    np.testing.assert_allclose(found.std(1), deviation, rtol=0.12, atol=0.02)
