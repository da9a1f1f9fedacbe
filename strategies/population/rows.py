"""States of members as NumPy arrays, for the time outside of their lanes and for the disk."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_host(state: Any) -> list[np.ndarray]:
    """The leaves of a state as NumPy arrays, random keys as their numbers."""
    return [
        np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


def from_host(leaves: Sequence[np.ndarray], shape: Any, like: Any) -> Any:
    """The state that `to_host` took.

    **Arguments:**

    - `shape`: of the state, a tree of `ShapeDtypeStruct`.
    - `like`: any state of that kind, whose random keys say of which sort they are.

    **Raises:** `ValueError` if the leaves have other shapes.
    """
    shapes, tree = jax.tree.flatten(shape)
    stored = [jax.eval_shape(jax.random.key_data, s) if _is_key(s) else s for s in shapes]
    expected = [(s.shape, s.dtype.itemsize) for s in stored]
    received = [(leaf.shape, leaf.dtype.itemsize) for leaf in leaves]
    if expected != received:
        raise ValueError(f"state: expected arrays of {expected}, received {received}")
    made = []
    for leaf, s, one in zip(leaves, stored, jax.tree.leaves(like), strict=True):
        # A file has no name for bfloat16 and its like.
        data = jnp.asarray(leaf if leaf.dtype == s.dtype else leaf.view(s.dtype))
        if _is_key(one):
            data = jax.random.wrap_key_data(data, impl=jax.random.key_impl(one))
        made.append(data)
    return jax.tree.unflatten(tree, made)


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))
