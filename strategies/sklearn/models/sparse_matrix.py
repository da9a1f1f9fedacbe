"""Sparse features in a compiled program: products by gathering and adding, under `vmap` as well.

Entries of a row stand in chunks of a fixed length, filled up with zeros: a chunk is summed in a
loop that compiles well, and few sums are left to be added at a row's place, which does not.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import sparse

# Entries of a chunk: more waste memory, fewer time.
_LENGTH = 8


class Chunks(eqx.Module):
    """The entries of all rows, in chunks.

    - `data`, `column`: of each entry, `(chunks, length)`.
    - `row`: of each chunk.
    """

    data: Array | np.ndarray
    column: Array | np.ndarray
    row: Array | np.ndarray

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> "Chunks":
        """Those of a matrix, as NumPy arrays."""
        counts = np.diff(matrix.indptr)
        chunks = -(-counts // _LENGTH)
        row = np.repeat(np.arange(len(counts), dtype=np.int32), chunks)
        first = np.concatenate([[0], np.cumsum(chunks)[:-1]]) * _LENGTH
        # An entry's place: where its row's chunks begin, and how many come before it in the row.
        within = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)
        place = np.repeat(first, counts) + within
        data = np.zeros(len(row) * _LENGTH)
        column = np.zeros(len(row) * _LENGTH, np.int32)
        data[place], column[place] = matrix.data, matrix.indices
        return cls(data.reshape(-1, _LENGTH), column.reshape(-1, _LENGTH), row)

    def times(self, other: Float[Array, "p m"], rows: int) -> Float[Array, "n m"]:
        """The matrix times another."""

        # One fold after the other: what is gathered from stays near.
        @jax.custom_batching.sequential_vmap
        def product(data: Array, column: Array, row: Array, other: Array) -> Array:
            gathered = other.at[column].get(mode="promise_in_bounds")
            sums = jnp.sum(data[:, :, None] * gathered, axis=1)
            return jax.ops.segment_sum(
                sums, row, rows, indices_are_sorted=True, mode="promise_in_bounds"
            )

        return product(self.data, self.column, self.row, other)


class SparseMatrix(eqx.Module):
    """A matrix by rows, and by columns for the product from the other side.

    - `by_row`, `by_column`: its entries.
    - `shape`: of the matrix.
    """

    by_row: Chunks
    by_column: Chunks
    shape: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def stacked(cls, matrices: list[Any]) -> "SparseMatrix":
        """One matrix as it is, or several with a leading axis."""
        each = []
        for matrix in matrices:
            x = sparse.csr_array(matrix, copy=True)
            x.sum_duplicates()
            each.append((Chunks.of(x), Chunks.of(sparse.csr_array(x.T))))
        if len(each) == 1:
            by_row, by_column = jax.tree.map(jnp.asarray, each[0])
        else:
            by_row, by_column = jax.tree.map(_padded, *each)
        return cls(by_row, by_column, matrices[0].shape)

    @property
    def size(self) -> int:
        """Entries that are stored."""
        return int(self.by_row.data.size)

    @property
    def T(self) -> "SparseMatrix":  # noqa: N802 -- as arrays call it
        """The transposed matrix."""
        return SparseMatrix(self.by_column, self.by_row, (self.shape[1], self.shape[0]))

    def squared(self) -> "SparseMatrix":
        """Every entry's square."""
        by_row, by_column = (
            Chunks(part.data**2, part.column, part.row) for part in (self.by_row, self.by_column)
        )
        return SparseMatrix(by_row, by_column, self.shape)

    def __matmul__(self, other: Float[Array, "p m"]) -> Float[Array, "n m"]:
        return _product(self, other)


@jax.custom_vjp
def _product(x: SparseMatrix, other: Array) -> Array:
    return x.by_row.times(other, x.shape[0])


def _forward(x: SparseMatrix, other: Array) -> tuple[Array, SparseMatrix]:
    return _product(x, other), x


def _backward(x: SparseMatrix, cotangent: Array) -> tuple[None, Array]:
    return None, x.T @ cotangent


_product.defvjp(_forward, _backward)


def _padded(*parts: np.ndarray) -> Array:
    """Arrays of unequal length with a leading axis; chunks of zeros are added to the last row."""
    most = max(len(part) for part in parts)
    # By the edge: chunks stay sorted by row.
    filled = []
    for part in parts:
        more = np.zeros((most - len(part), *part.shape[1:]), part.dtype)
        filled.append(np.concatenate([part, more + part[-1:] if part.ndim == 1 else more]))
    return jnp.asarray(np.stack(filled))
