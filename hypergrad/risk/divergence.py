"""The degrees of freedom of a fit: the divergence of its fitted values in the data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Scalar

from hypergrad.expected import received, require_array, require_count, require_function, require_key


def require_probes(owner: str, probes: int | None, key: Array | None) -> None:
    """Refuse probes that are no count, or have no key.

    **Raises:** `ValueError` that names the argument.
    """
    if probes is not None:
        require_count(owner, "probes", probes)
        require_key(owner, "key", key)


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
    require_function("divergence", "fitted", fitted)
    require_array("divergence", "y", y)
    require_probes("divergence", probes, key)
    # Probes without a key were refused.
    if probes is None or key is None:
        directions = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    else:
        directions = jax.random.rademacher(key, (probes, *y.shape), y.dtype)

    def values(y: Array) -> Array:
        found = fitted(y)
        if not isinstance(found, np.ndarray | jax.Array) or found.shape != y.shape:
            shape = getattr(found, "shape", None)
            raise ValueError(
                f"divergence: fitted: expected values of the shape {y.shape}, received "
                f"{received(found) if shape is None else shape}."
            )
        return found

    def along(direction: Array) -> Scalar:
        _, moved = jax.jvp(values, (y,), (direction,))
        return jnp.vdot(direction, moved)

    total = jnp.sum(jax.vmap(along)(directions))
    return total if probes is None else total / probes
