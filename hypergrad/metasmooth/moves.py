"""The metasmoothness of two moves of the end of a training, and the noise that it stands for."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def smoothness_of(
    first: Float[Any, "... parameters"], second: Float[Any, "... parameters"]
) -> Float[Array, "..."]:
    """The metasmoothness of the moves `Δ` and `Δ'`; NaN if they cancel or nothing moved."""
    moved = jnp.abs(first + second)
    agreeing = jnp.sum(moved * jnp.sign(first) * jnp.sign(second), axis=-1)
    return agreeing / jnp.sum(moved, axis=-1)


def noise_of(smoothness: Float[Any, "..."]) -> Float[Array, "..."]:
    """Size of the noise in a move, relative to what the move has of a smooth part.

    Let the end of the training be a straight line and independent noise of variance `n²` at each
    point, and let the slopes be Gaussian over the parameters, of variance `s²`. Two moves in
    succession then have the correlation `r = (s² − n²) / (s² + 2n²)`, and their metasmoothness is
    `S = 2 √((1 + r) / 2) − 1`. Solved for the noise of a move, `√2 n / s`:

        √((4 − (1 + S)²) / ((1 + S)² − 1)),

    0 for `S = 1`, 1 for `S = 0.58`, infinite from `S = 0` down, and where nothing is known.
    """
    square = (1 + smoothness) ** 2
    known = smoothness > 0  # Not if it is NaN.
    noise = jnp.sqrt(jnp.maximum(4 - square, 0) / jnp.where(known, square - 1, 1))
    return jnp.where(known, noise, jnp.inf)
