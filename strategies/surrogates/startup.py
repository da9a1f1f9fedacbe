"""Evenly spread points, before there is a model."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc


def sobol_point(dimension: int, seed: int, number: int) -> NDArray[np.float64]:
    """Point `number` of a scrambled Sobol sequence in the unit cube (Owen 1998)."""
    sequence = qmc.Sobol(dimension, rng=np.random.default_rng(seed))
    if number:
        sequence.fast_forward(number)
    return sequence.random(1)[0]
