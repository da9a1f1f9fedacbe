"""A batch in groups of examples, each of which shares one perturbation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def group_count(batch: PyTree, groups: int | None) -> int:
    """How many groups a batch has: `groups` as `SelfTuning` takes it.

    **Raises:** `ValueError` when the batch cannot be split into them.
    """
    if groups == 1:
        return 1
    sizes = {
        jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0
        for leaf in jax.tree.leaves(batch)
        if eqx.is_array_like(leaf)
    }
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "SelfTuning: expected the same leading axis of examples in every array of a batch, "
            f"received lengths {sorted(sizes)} (0 for a scalar). For other batches set groups=1."
        )
    size = sizes.pop()
    groups = size if groups is None else groups
    if size % groups:
        raise ValueError(
            f"SelfTuning: expected a batch that splits into groups={groups}, received {size} "
            "examples."
        )
    return groups


def split(batch: PyTree, groups: int) -> PyTree:
    """Leading axis `groups`, then the examples of each."""
    return jax.tree.map(lambda a: jnp.reshape(a, (groups, -1, *jnp.shape(a)[1:])), batch)
