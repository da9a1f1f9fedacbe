"""Random vectors of the parameter space."""

from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree

from hypergrad.linear import vector


def random_like(draw: Callable[..., Array], key: Array, like: PyTree, count: int) -> PyTree:
    """`count` random vectors of the space of `like`, stacked along a new first axis.

    `draw(key, shape, dtype)` is one of the samplers of `jax.random`.
    """
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [
        vector.placed(draw(k, (count, *leaf.shape), leaf.dtype), leaf)
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, drawn)


def random_signs(like: PyTree, key: Array | None = None) -> PyTree:
    """A vector of independent random signs, without a key the same at every call."""
    key = jax.random.key(0) if key is None else key
    return jax.tree.map(lambda a: a[0], random_like(jax.random.rademacher, key, like, 1))
