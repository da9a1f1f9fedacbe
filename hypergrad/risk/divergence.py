"""The degrees of freedom of a fit: the divergence of its fitted values in the data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar


def divergence(
    fitted: Callable[[Array], Array], y: Array, probes: int | None = None, key: Array | None = None
) -> Scalar:
    """`Σ ∂ fittedᵢ / ∂ yᵢ`.

    **Arguments:**

    - `fitted`: fitted values of the data, of their shape.
    - `y`: the data.
    - `probes`: random signs, each of which costs one derivative (Hutchinson 1990). Default `None`:
      exact, one derivative for every entry of `y`.
    - `key`: for the probes.

    **Raises:** `ValueError` for probes without a key, or fewer than one.
    """
    if probes is not None and probes < 1:
        raise ValueError(
            "divergence: 'probes': expected an integer >= 1, or None for the exact one, received "
            f"{probes!r}."
        )
    if probes is None:
        directions = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    else:
        if key is None:
            raise ValueError("divergence: 'key': expected a key for the random probes.")
        directions = jax.random.rademacher(key, (probes, *y.shape), y.dtype)

    def along(direction: Array) -> Scalar:
        _, moved = jax.jvp(fitted, (y,), (direction,))
        return jnp.vdot(direction, moved)

    total = jnp.sum(jax.vmap(along)(directions))
    return total if probes is None else total / probes
