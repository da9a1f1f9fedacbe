"""Functions drawn from a fitted process, cheap to evaluate anywhere.

A draw of the prior, a sum of random cosines, is corrected by what the data say about its errors at
the data (Matheron's rule; Wilson et al., "Efficiently sampling functions from Gaussian process
posteriors", ICML 2020). Derivative rows are rows as all others.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

from strategies.surrogates.gaussian_process import GaussianProcess, _noise, _of_values

Matrix = NDArray[np.float64]

#: Cosines of a draw: its covariance is within a thirtieth of the process's.
_FEATURES = 1024


def draw(
    process: GaussianProcess, count: int, rng: np.random.Generator
) -> Callable[[Matrix], Matrix]:
    """`count` functions of the posterior.

    **Returns:** A function from points, shape `(n, d)`, to values, shape `(n, count)`.
    """
    rows, scales = process.rows, process.scales
    # The spectral density of a Matérn-5/2 kernel is a t distribution with five degrees of freedom.
    frequencies = rng.standard_normal((len(scales), _FEATURES))
    frequencies /= np.sqrt(rng.chisquare(5, _FEATURES) / 5)
    frequencies /= scales[:, None]
    phases = rng.uniform(0, 2 * np.pi, _FEATURES)
    weights = rng.standard_normal((_FEATURES, count)) * np.sqrt(2 * process.signal / _FEATURES)

    def prior(x: Matrix) -> Matrix:
        return np.cos(x @ frequencies + phases) @ weights

    turned = -np.sin(rows.x @ frequencies + phases) * (rows.direction @ frequencies)
    at_rows = np.where(rows.is_value[:, None] > 0, prior(rows.x), turned @ weights)
    noise = np.sqrt(_noise(rows, process.noise, process.gradient_noise))
    errors = at_rows + noise[:, None] * rng.standard_normal(at_rows.shape)
    correction = cho_solve((process.factor, True), errors, check_finite=False)
    correction = process.weights[:, None] - correction

    def function(x: Matrix) -> Matrix:
        cross = process.signal * _of_values(x / scales, rows, scales)
        return prior(x) + cross @ correction

    return function
