"""Direct solution of `A x = b`: the matrix by products with the basis vectors, then factorised.

Cholesky for a symmetric operator, by eigenvalues where it is not positive definite; LU for any
other, by singular values where it is singular.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from hypergrad.expected import require_count
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.preconditioner import BuiltPreconditioner, Preconditioner
from hypergrad.linear.solution import LinearSolution, Spectrum
from hypergrad.linear.system import System
from hypergrad.outcome import Outcome


class Dense(LinearSolver):
    """Materialise and factorise: `n` independent products, taken in batches.

    For a few hundred unknowns this is often the fastest way: the products do not wait for one
    another, and they need not be many per right-hand side under `vmap`. A singular or indefinite
    symmetric operator is reported (`nonpositive_curvature`) and solved all the same, in the
    least-squares sense with the shortest solution; `residual` tells what could not be reached.

    **Arguments:**

    - `max_size`: refuse a larger `n`: the matrix takes `n²` numbers. Default 4096.
    - `chunk`: products in one batch. Default 128.
    """

    max_size: int = eqx.field(static=True, default=4096)
    chunk: int = eqx.field(static=True, default=128)

    def __check_init__(self) -> None:
        require_count("Dense", "chunk", self.chunk)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`; a start is not used.

        **Raises:** `ValueError` if there are more than `max_size` unknowns.
        """
        n = vector.size(system.rhs)
        _check_size("Dense", n, self.max_size)
        b, unravel = vector.flattened(system.rhs)
        matrix = jnp.zeros((0, 0), b.dtype)
        if n > 0:
            matrix = materialise(system.operator, system.rhs, chunk=self.chunk).astype(b.dtype)
        finite = jnp.all(jnp.isfinite(matrix))
        matrix = jnp.where(finite, matrix, jnp.eye(n, dtype=b.dtype))
        indefinite = jnp.asarray(False)
        if system.operator.symmetric:
            x, low, high, positive = _symmetric(matrix, b)
            indefinite = ~positive
        else:
            x, low, high = _general(matrix, b)
        usable = finite & jnp.all(jnp.isfinite(x))
        x = jnp.where(usable, x, 0)
        left = vector.norm(b - jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST))
        regular = left <= jnp.sqrt(jnp.finfo(b.dtype).eps) * system.norm
        outcome = Outcome.where(regular, Outcome.solved, Outcome.stagnated)
        outcome = Outcome.where(indefinite, Outcome.indefinite, outcome)
        return system.solution(
            unravel(x),
            left,
            n,
            Outcome.where(usable, outcome, Outcome.not_finite),
            Spectrum(jnp.where(finite, low, jnp.nan), jnp.where(finite, high, jnp.nan)),
        )


class DensePreconditioner(Preconditioner):
    """The inverse of the whole matrix, to be kept while the operator moves.

    Of no use for the operator that it was built from, where `Dense` solves at once. But over the
    outer steps of a hyperparameter search the operator changes little, and with the inverse from
    some steps ago `PCG` needs a handful of products where CG needs hundreds. Build it anew when
    `products` of the solution grows. An indefinite matrix is replaced by its absolute value.

    **Arguments:**

    - `max_size`, `chunk`: as for `Dense`.
    """

    max_size: int = eqx.field(static=True, default=4096)
    chunk: int = eqx.field(static=True, default=128)

    def build(
        self, operator: LinearOperator, like: PyTree
    ) -> tuple[BuiltPreconditioner, Int[Array, ""]]:
        """Materialise and invert.

        **Raises:** `ValueError` if there are more than `max_size` unknowns, or if the operator is
        not symmetric.
        """
        n = vector.size(like)
        _check_size("DensePreconditioner", n, self.max_size)
        operator.require_symmetric("DensePreconditioner")
        matrix = materialise(operator, like, chunk=self.chunk)
        matrix = (matrix + matrix.T) / 2
        factor = jnp.linalg.cholesky(matrix)

        def direct() -> Array:
            return jax.scipy.linalg.cho_solve((factor, True), jnp.eye(n, dtype=matrix.dtype))

        def by_eigenvalues() -> Array:
            values, vectors = jnp.linalg.eigh(matrix)
            noise = n * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
            return (vectors / jnp.maximum(jnp.abs(values), noise)) @ vectors.T

        inverse = jax.lax.cond(jnp.all(jnp.isfinite(factor)), direct, by_eigenvalues)
        return Inverse((inverse + inverse.T) / 2), jnp.asarray(n, jnp.int32)


class Inverse(BuiltPreconditioner):
    """`P⁻¹` as a matrix, on the leaves raveled one after another."""

    matrix: Float[Array, "n n"]

    def __call__(self, v: PyTree) -> PyTree:
        """`P⁻¹ v`."""
        flat, unravel = vector.flattened(v)
        return unravel((self.matrix @ flat).astype(flat.dtype))


def materialise(operator: LinearOperator, like: PyTree, *, chunk: int = 128) -> Float[Array, "n n"]:
    """The operator's matrix, in the order of `jax.tree.leaves(like)` raveled one after another.

    **Arguments:**

    - `operator`: the map `A`.
    - `like`: a vector of its space; only shapes and dtypes matter.
    - `chunk`: products taken together in one batch. Default 128.
    """
    flat, unravel = vector.flattened(like)
    n = flat.size

    def column(index: Array) -> Array:
        unit = jax.nn.one_hot(index, n, dtype=flat.dtype)
        return vector.flattened(operator.mv(unravel(unit)))[0]

    # The last batch is filled up with columns seen before, so that the product is compiled once.
    batches = -(-n // chunk)
    width = -(-n // batches)
    indices = (jnp.arange(batches * width) % n).reshape(batches, width)
    columns = jax.lax.map(jax.vmap(column), indices)
    return columns.reshape(batches * width, n)[:n].T


def _check_size(method: str, n: int, max_size: int) -> None:
    if n > max_size:
        raise ValueError(
            f"{method}: {n} unknowns, but max_size is {max_size} ({n}² numbers would be held). "
            "Use CG or another iterative solver, or raise max_size."
        )


def _symmetric(matrix: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Solution, a lower and an upper Rayleigh quotient, and whether positive definite."""
    matrix = (matrix + matrix.T) / 2
    factor = jnp.linalg.cholesky(matrix)
    diagonal = jnp.diagonal(matrix)
    # Rounding may let a singular matrix pass, with a last pivot of its own size.
    eps = jnp.finfo(matrix.dtype).eps
    noise = 10 * matrix.shape[0] * eps * jnp.max(diagonal, initial=0)
    definite = jnp.all(jnp.diagonal(factor) ** 2 > noise)

    def direct() -> tuple[Array, Array, Array, Array]:
        x = jax.scipy.linalg.cho_solve((factor, True), b)
        low, high = jnp.min(diagonal, initial=jnp.inf), jnp.max(diagonal, initial=-jnp.inf)
        return x, low, high, definite

    def by_eigenvalues() -> tuple[Array, Array, Array, Array]:
        values, vectors = jnp.linalg.eigh(matrix)
        x = vectors @ (_inverse(values) * (vectors.T @ b))
        return x, values[0], values[-1], definite

    if matrix.shape[0] == 0:
        return direct()
    return jax.lax.cond(definite, direct, by_eigenvalues)


def _general(matrix: Array, b: Array) -> tuple[Array, Array, Array]:
    """Solution, a lower and an upper Rayleigh quotient."""
    x = jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(matrix), b)
    left = vector.norm(b - matrix @ x)
    regular = left <= jnp.sqrt(jnp.finfo(matrix.dtype).eps) * vector.norm(b)

    def by_singular_values() -> Array:
        u, s, vt = jnp.linalg.svd(matrix)
        return vt.T @ (_inverse(s) * (u.T @ b))

    diagonal = jnp.diagonal(matrix)
    low, high = jnp.min(diagonal, initial=jnp.inf), jnp.max(diagonal, initial=-jnp.inf)
    if matrix.shape[0] == 0:
        return x, low, high
    return jax.lax.cond(regular, lambda: x, by_singular_values), low, high


def _inverse(values: Array) -> Array:
    """`1 / values`, and zero for those that are zero to rounding."""
    noise = values.shape[0] * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    kept = jnp.abs(values) > noise
    return jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
