"""Sparse features in a compiled program: products by gathering and adding, under `vmap` as well."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import sparse


class SparseMatrix(eqx.Module):
    """Entries of a matrix, in any order; padding is a zero at the origin.

    - `data`, `row`, `column`: of each entry.
    - `shape`: of the matrix.
    """

    data: Float[Array, " entries"]
    row: Int[Array, " entries"]
    column: Int[Array, " entries"]
    shape: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def stacked(cls, matrices: list[Any]) -> "SparseMatrix":
        """One matrix as it is, or several with a leading axis."""
        entries = [sparse.coo_array(x, copy=True) for x in matrices]
        for x in entries:
            x.sum_duplicates()
        most = max(x.nnz for x in entries)

        def pad(part: np.ndarray) -> np.ndarray:
            return np.pad(part, (0, most - len(part)))

        parts = [
            [pad(x.data), pad(x.row.astype(np.int32)), pad(x.col.astype(np.int32))] for x in entries
        ]
        if len(parts) == 1:
            leaves = [jnp.asarray(part) for part in parts[0]]
        else:
            leaves = [jnp.asarray(np.stack(part)) for part in zip(*parts, strict=True)]
        return cls(*leaves, shape=matrices[0].shape)

    @property
    def T(self) -> "SparseMatrix":  # noqa: N802 -- as arrays call it
        """The transposed matrix."""
        return SparseMatrix(self.data, self.column, self.row, (self.shape[1], self.shape[0]))

    def squared(self) -> "SparseMatrix":
        """Every entry's square; there is one entry for each place."""
        return SparseMatrix(self.data**2, self.row, self.column, self.shape)

    def __matmul__(self, other: Float[Array, "p m"]) -> Float[Array, "n m"]:
        moved = self.data[:, None] * other[self.column]
        return jax.ops.segment_sum(moved, self.row, self.shape[0])


__all__ = ["SparseMatrix"]
