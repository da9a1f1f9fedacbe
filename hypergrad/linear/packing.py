"""Vectors whose small leaves are joined in one.

An iterative solver is a handful of operations on vectors, and each of them is compiled leaf by
leaf. A network has a bias or a scale for every matrix: joined, they cost the program of one leaf.
"""

from itertools import accumulate

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.linear.vector import Product

_SMALL = 2**13


class Packing(eqx.Module):
    """Joins the leaves of at most 8192 entries, those of one dtype with each other.

    Leaves that are sharded over devices stay by themselves.

    **Fields:**

    - `like`: a vector; only shapes and dtypes matter.
    """

    like: PyTree

    def pack(self, vector: PyTree) -> list[Array]:
        """The vector as a list of arrays."""
        leaves = jax.tree.leaves(vector)
        return [
            leaves[group[0]]
            if len(group) == 1
            else jnp.concatenate([leaves[i].ravel() for i in group])
            for group in self._groups()
        ]

    def unpack(self, packed: list[Array]) -> PyTree:
        """The vector again."""
        likes, structure = jax.tree.flatten(self.like)
        leaves = list(likes)
        for group, joined in zip(self._groups(), packed, strict=True):
            if len(group) == 1:
                leaves[group[0]] = joined
                continue
            ends = accumulate(likes[i].size for i in group[:-1])
            for i, part in zip(group, jnp.split(joined, list(ends)), strict=True):
                leaves[i] = part.reshape(likes[i].shape)
        return jax.tree.unflatten(structure, leaves)

    def around(self, product: Product) -> Product:
        """The product on packed vectors."""
        return lambda packed: self.pack(product(self.unpack(packed)))

    def _groups(self) -> list[list[int]]:
        groups: dict = {}
        for i, leaf in enumerate(jax.tree.leaves(self.like)):
            joins = leaf.size <= _SMALL and not vector.split(leaf)
            groups.setdefault(leaf.dtype if joins else i, []).append(i)
        return list(groups.values())
