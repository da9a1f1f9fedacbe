"""The direction along which all objectives fall.

The shortest vector of the convex hull of the gradients, turned around: every objective falls along
it at least as fast as it is long, and where there is no such direction it is zero, which is the
first-order condition of a Pareto optimum (MGDA: Fliege & Svaiter 2000; Désidéri 2012).
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Weights below are zero but for rounding.
_ROUNDING = 1e-12


def common_descent(gradients: Matrix) -> Vector:
    """The direction, for the rows of `gradients`.

    With a handful of objectives every face of the hull is tried: on each the shortest vector of its
    plane is the solution of a small linear system.
    """
    count = len(gradients)
    best, shortest = np.zeros(gradients.shape[1]), np.inf
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            found = _shortest(gradients[list(chosen)])
            if found is not None and (length := float(found @ found)) < shortest:
                best, shortest = found, length
    return -best


def _shortest(face: Matrix) -> Vector | None:
    """The shortest vector of the plane through the rows, if it lies between them."""
    size = len(face)
    scale = float(np.abs(face).max()) or 1.0
    system = np.zeros((size + 1, size + 1))
    system[:size, :size] = (face / scale) @ (face / scale).T
    system[:size, size] = system[size, :size] = 1.0
    solved = np.linalg.lstsq(system, np.r_[np.zeros(size), 1.0], rcond=None)[0]
    weights = solved[:size]
    if weights.min() < -_ROUNDING:
        return None
    return np.maximum(weights, 0.0) @ face
