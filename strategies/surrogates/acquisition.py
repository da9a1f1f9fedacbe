"""Expected improvement, in logarithms (Jones et al. 1998; Ament et al. 2023).

For a normal belief with mean `m` and standard deviation `s` about a value to be minimised, and the
best value `b` so far, `EI = s (z Φ(z) + φ(z))`, `z = (b - m) / s`. Far from the best point EI
underflows; its logarithm does not, and keeps a useful slope.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

Array = NDArray[np.float64]

_LOG_ROOT_2PI = 0.5 * np.log(2 * np.pi)


def _log_h(z: Array) -> Array:
    """`log(z Φ(z) + φ(z))`, stable for any `z`."""
    log_phi = -0.5 * z**2 - _LOG_ROOT_2PI
    low = np.clip(z, -50.0, 0.0)
    # h = φ (1 + z Mills(z)) for negative z; the sum loses its digits far below zero, where the
    # first terms of its asymptotic series, 1/z² - 3/z⁴ + 15/z⁶, are accurate to 1e-9.
    mills = np.exp(log_ndtr(low) + 0.5 * low**2 + _LOG_ROOT_2PI)
    square = np.maximum(z**2, 1.0)
    shrink = np.where(z > -50.0, 1.0 + low * mills, (1.0 - (3.0 - 15.0 / square) / square) / square)
    tail = log_phi + np.log(np.maximum(shrink, 1e-300))
    return np.where(z < 0, tail, np.log(np.maximum(z * ndtr(z) + np.exp(log_phi), 1e-300)))


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Logarithm of the expected improvement below `best`, elementwise."""
    return np.log(deviation) + _log_h((best - mean) / deviation)


def log_expected_improvement_slopes(
    mean: Array, deviation: Array, best: float
) -> tuple[Array, Array]:
    """Its derivatives with respect to the mean and to the standard deviation."""
    z = (best - mean) / deviation
    log_h = _log_h(z)
    by_mean = -np.exp(log_ndtr(z) - log_h) / deviation
    by_deviation = np.exp(-0.5 * z**2 - _LOG_ROOT_2PI - log_h) / deviation
    return by_mean, by_deviation
