"""Expected improvement, in logarithms (Jones et al. 1998; Ament et al. 2023).

For a normal belief with mean `m` and standard deviation `s` about a value to be minimised, and the
best value `b` so far, `EI = s (z Φ(z) + φ(z))`, `z = (b - m) / s`. Far from the best point EI
underflows; its logarithm does not, and keeps a useful slope.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

Array = NDArray[np.float64]

_LOG_ROOT_2PI = 0.5 * np.log(2 * np.pi)


class _Hopeless(NamedTuple):
    """For negative `z`, in units of the density `φ(z)`, none of which underflows.

    - `mills`: `Φ(z) / φ(z)`, the Mills ratio.
    - `shrink`: `h(z) / φ(z) = 1 + z mills`, for `h(z) = z Φ(z) + φ(z)`.
    """

    mills: Array
    shrink: Array


def _hopeless(z: Array) -> _Hopeless:
    low = np.clip(z, -50.0, 0.0)
    mills = np.exp(log_ndtr(low) + 0.5 * low**2 + _LOG_ROOT_2PI)
    # The sum loses its digits far below zero, where the first terms of its asymptotic series,
    # 1/z² - 3/z⁴ + 15/z⁶, are accurate to 1e-9.
    square = np.maximum(z**2, 1.0)
    series = (1.0 - (3.0 - 15.0 / square) / square) / square
    far = z < -50.0
    return _Hopeless(
        mills=np.where(far, (1.0 - series) / np.maximum(-z, 1.0), mills),
        shrink=np.where(far, np.maximum(series, 1e-300), np.maximum(1.0 + low * mills, 1e-300)),
    )


def _log_h(z: Array) -> Array:
    """`log(z Φ(z) + φ(z))`, stable for any `z`."""
    # Values of 1e300 are so many deviations away that squares overflow; the tail is right there.
    with np.errstate(over="ignore", invalid="ignore"):
        log_phi = -0.5 * z**2 - _LOG_ROOT_2PI
        tail = log_phi + np.log(_hopeless(z).shrink)
        near = np.log(np.maximum(z * ndtr(z) + np.exp(log_phi), 1e-300))
    return np.where(z < 0, tail, near)


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Logarithm of the expected improvement below `best`, elementwise."""
    return np.log(deviation) + _log_h((best - mean) / deviation)


def expected_improvement(mean: Array, deviation: Array, best: Array | float) -> Array:
    """The expected improvement below `best` itself, elementwise; it underflows to zero."""
    with np.errstate(over="ignore"):  # beliefs about chaotic functions have no bounds
        return np.asarray(np.exp(np.log(deviation) + _log_h((best - mean) / deviation)))


def log_expected_improvement_slopes(
    mean: Array, deviation: Array, best: float
) -> tuple[Array, Array]:
    """Its derivatives with respect to the mean and to the standard deviation."""
    z = (best - mean) / deviation
    mills, shrink = _hopeless(z)
    high = np.maximum(z, 0.0)
    phi = np.exp(-0.5 * high**2 - _LOG_ROOT_2PI)
    h = high * ndtr(high) + phi
    by_mean = np.where(z < 0, mills / shrink, ndtr(high) / h)
    by_deviation = np.where(z < 0, 1.0 / shrink, phi / h)
    return -by_mean / deviation, by_deviation / deviation
