"""Transformations of the observed values that a Gaussian process can live with.

Each returns the transformed values, centred with unit spread, and the derivative of the
transformation at each, by which observed gradients are multiplied.
"""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def imputed(values: Vector) -> Vector:
    """Values that are not finite (failures) replaced by the worst finite one."""
    return np.where(np.isfinite(values), values, np.max(values[np.isfinite(values)]))


def standardised(values: Vector) -> tuple[Vector, Vector]:
    """Centred, with unit spread."""
    spread = max(float(values.std()), 1e-12)
    return (values - values.mean()) / spread, np.full_like(values, 1.0 / spread)


def shifted(values: Vector) -> Vector:
    """`value - best + shift`, positive, what `logarithmic` takes the logarithm of.

    The shift is half the median distance to the best value, so that the transformation adapts to
    the distribution and neither to the unit of the objective nor to its worst value.
    """
    offset = values - values.min()
    shift = 0.5 * float(np.median(offset)) or float(offset.max()) or 1.0
    return offset + shift


def logarithmic(values: Vector) -> tuple[Vector, Vector]:
    """Logarithm of `shifted`: smooth and monotone, heavy tails tamed, the best part enlarged."""
    positive = shifted(values)
    scaled, slope = standardised(np.log(positive))
    return scaled, slope / positive
