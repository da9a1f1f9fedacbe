"""Two kernels; any function `kernel(hparams, x, z) -> matrix` will do."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from hypergrad.expected import received, require_array


def squared_exponential(
    hparams: dict, x: Float[Array, "n d"], z: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """`σ² exp(−r² / 2)`, `r` the distance in units of the length scales.

    **Arguments:** `hparams["log_sigma"]`, a scalar; `hparams["log_length"]`, a scalar or one for
    each dimension.
    """
    _check("squared_exponential", hparams, x, z)
    return jnp.exp(2 * hparams["log_sigma"] - 0.5 * _squares(hparams, x, z))


def matern52(hparams: dict, x: Float[Array, "n d"], z: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """The Matérn kernel of smoothness 5/2; `hparams` as for `squared_exponential`."""
    _check("matern52", hparams, x, z)
    squares = 5 * _squares(hparams, x, z)
    # The distance has no derivative at zero; the kernel does, and it is zero there.
    apart = squares > 0
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
    shape = (1 + distance + squares / 3) * jnp.exp(-distance)
    return jnp.exp(2 * hparams["log_sigma"]) * shape


def _check(owner: str, hparams: dict, x: Array, z: Array) -> None:
    if not isinstance(hparams, Mapping) or not {"log_sigma", "log_length"} <= set(hparams):
        given = sorted(hparams, key=repr) if isinstance(hparams, Mapping) else received(hparams)
        raise ValueError(
            f"{owner}: hparams: expected a dict with 'log_sigma' and 'log_length', received "
            f"{given}."
        )
    for name, value in (("x", x), ("z", z)):
        require_array(owner, name, value)
        if value.ndim != 2:
            raise ValueError(f"{owner}: {name}: expected a matrix, received shape {value.shape}.")


def _squares(hparams: dict, x: Array, z: Array) -> Array:
    scale = jnp.broadcast_to(jnp.exp(-hparams["log_length"]), x.shape[1:])
    return _scaled_squares(scale, x, z)


@jax.custom_jvp
def _scaled_squares(scale: Array, x: Array, z: Array) -> Array:
    # Differences, not the expanded square: of near points that would be rounding, even negative.
    return jnp.sum(((x[:, None] - z[None]) * scale) ** 2, axis=-1)


@_scaled_squares.defjvp
def _scaled_squares_jvp(given: tuple, moved: tuple) -> tuple[Array, Array]:
    """One dimension after another, so that the transpose needs no array `(n, m, d)`.

    Not as products of matrices, for which the square would have to be expanded.
    """
    (scale, x, z), (d_scale, dx, dz) = given, moved
    squares = _scaled_squares(scale, x, z)

    # Differences are taken again by the transpose, in place of `d` stored matrices.
    @jax.checkpoint
    def add(total: Array, one: tuple) -> tuple[Array, None]:
        scale, x, z, d_scale, dx, dz = one
        apart = x[:, None] - z
        return total + 2 * scale * apart * (d_scale * apart + scale * (dx[:, None] - dz)), None

    columns = (scale, x.T, z.T, d_scale, dx.T, dz.T)
    return squares, lax.scan(add, jnp.zeros_like(squares), columns)[0]
