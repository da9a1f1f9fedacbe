"""In which units a setting is changed: each value of the setting is a point of the real line."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Scale = Literal["log", "logit", "linear"]
"""In which units a setting is changed: by factors, by its odds, or by differences."""

# Logarithms of a start that reaches zero (a warm-up, a cosine) stop at this share of its largest.
_LEAST_SHARE = 1e-3
# And logits so near to 0 and 1.
_MARGIN = 1e-4


def to_line(name: str, values: np.ndarray, scale: Scale) -> np.ndarray:
    """The points of these values.

    **Raises:** `ValueError` for values outside the range of the scale.
    """
    bad = ~np.isfinite(values)
    if scale == "log":
        bad |= values < 0
        wanted = "numbers of at least 0, one of them positive"
        if not bad.any() and values.max() > 0:
            return np.log(np.maximum(values, _LEAST_SHARE * values.max()))
    elif scale == "logit":
        bad |= (values < 0) | (values > 1)
        wanted = "numbers in [0, 1]"
        if not bad.any():
            inside = np.clip(values, _MARGIN, 1 - _MARGIN)
            return np.log(inside / (1 - inside))
    elif scale == "linear":
        wanted = "finite numbers"
        if not bad.any():
            return values
    else:
        raise ValueError(
            f'scales: {name!r}: expected "log", "logit" or "linear", received {scale!r}.'
        )
    worst = values[bad][0] if bad.any() else values.max()
    raise ValueError(
        f"start: {name!r} on the scale {scale!r}: expected {wanted}, received {worst:.6g}."
    )


def from_line(points: Array, scale: Scale) -> Array:
    """The inverse of `to_line`."""
    if scale == "log":
        return jnp.exp(points)
    return jax.nn.sigmoid(points) if scale == "logit" else points
