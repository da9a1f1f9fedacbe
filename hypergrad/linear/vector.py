"""The vector space of parameter pytrees: the few operations that iterative solvers need.

Inner products and norms are accumulated in at least float32, so that bfloat16 leaves do not lose
the small differences on which conjugate-direction methods depend. `None` leaves (the
non-differentiable part of a model, as left by `equinox.partition`) are skipped.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Scalar

Product = Callable[[PyTree], PyTree]

_HIGHEST = jax.lax.Precision.HIGHEST


def _accumulator(*leaves: Array) -> jnp.dtype:
    # Of dtypes and not of the arrays: a weakly typed float64 scalar must not count as float32.
    return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))


def widen(x: PyTree) -> PyTree:
    """`x` with every leaf in at least float32."""
    return jax.tree.map(lambda a: a.astype(_accumulator(a)), x)


def cast_like(x: PyTree, like: PyTree) -> PyTree:
    """`x` with every leaf in the dtype of `like`."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), x, like)


def widened(product: Product, like: PyTree) -> Product:
    """The product on vectors in at least float32, of one that wants the dtypes of `like`."""
    return lambda v: widen(product(cast_like(v, like)))


def vdot(x: PyTree, y: PyTree) -> Scalar:
    """Euclidean inner product of two pytrees of one structure; zero for empty trees."""

    def leaf(a: Array, b: Array) -> Scalar:
        dtype = _accumulator(a, b)
        a, b = a.astype(dtype), b.astype(dtype)
        if split(a):
            # A contraction of such axes would have to be told where it goes; a sum goes everywhere.
            return jnp.sum(a * b)
        return jnp.vdot(a, b, precision=_HIGHEST)

    products = jax.tree.leaves(jax.tree.map(leaf, x, y))
    return reduce(jnp.add, products) if products else jnp.zeros(())


def split(leaf: Array) -> bool:
    """Whether its type says that it is divided among devices: on a mesh with explicit axes."""
    return any(jax.typeof(leaf).sharding.spec)


def placed(made: Array, like: Array) -> Array:
    """An array made anew, divided among devices along its last axes as `like` is."""
    if not split(like):
        return made
    sharding = jax.typeof(like).sharding
    spec = PartitionSpec(*[None] * (made.ndim - like.ndim), *sharding.spec)
    return jax.sharding.reshard(made, NamedSharding(sharding.mesh, spec))


def flattened(x: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All entries in one vector, which every device has, and the way back."""
    flat, unravel = ravel_pytree(jax.tree.map(_gathered, x))
    return flat, lambda entries: jax.tree.map(placed, unravel(entries), x)


def _gathered(leaf: Array) -> Array:
    if not split(leaf):
        return leaf
    mesh = jax.typeof(leaf).sharding.mesh
    return jax.sharding.reshard(leaf, NamedSharding(mesh, PartitionSpec()))


def largest(x: PyTree) -> Scalar:
    """Largest absolute entry, in at least float32; NaN if an entry is."""
    leaves = jax.tree.leaves(x)
    if not leaves:
        return jnp.zeros(())
    dtype = _accumulator(*leaves)
    tops = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]
    return reduce(jnp.maximum, tops)


def scaled(x: PyTree) -> tuple[PyTree, Scalar]:
    """`x` in at least float32 and divided by its largest entry, and that; zeros if not finite.

    Its square neither overflows nor underflows.
    """
    x = widen(x)
    top = largest(x)
    finite = jnp.isfinite(top)
    # The inverse of a subnormal number overflows.
    top = jnp.where(top > 0, jnp.maximum(top, jnp.finfo(top.dtype).tiny), top)
    inverse = 1 / jnp.where(finite & (top > 0), top, 1)
    return jax.tree.map(lambda a: jnp.where(finite, a * inverse, 0).astype(a.dtype), x), top


def norm(x: PyTree) -> Scalar:
    """Euclidean norm, scaled by the largest entry so that tiny vectors do not underflow."""
    leaves = jax.tree.leaves(x)
    if not leaves:
        return jnp.zeros(())
    top = largest(x)
    safe = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    squares = [jnp.sum(jnp.square(leaf.astype(top.dtype) / safe)) for leaf in leaves]
    return safe * jnp.sqrt(reduce(jnp.add, squares))


def length(x: PyTree) -> Scalar:
    """Euclidean norm of a vector that is neither tiny nor huge: half the program of `norm`."""
    return jnp.sqrt(vdot(x, x))


def scale(factor: Array | float, x: PyTree) -> PyTree:
    """`factor * x`, each leaf in its own dtype."""
    return jax.tree.map(lambda a: (factor * a).astype(a.dtype), x)


def axpy(factor: Array | float, x: PyTree, y: PyTree) -> PyTree:
    """`factor * x + y`, each leaf in the dtype of `y`."""
    return jax.tree.map(lambda a, b: (factor * a + b).astype(b.dtype), x, y)


def sub(x: PyTree, y: PyTree) -> PyTree:
    """`x - y`."""
    return jax.tree.map(jnp.subtract, x, y)


def where(condition: Array | bool, x: PyTree, y: PyTree) -> PyTree:
    """`x` where the scalar `condition` holds, else `y`; leaves that are not arrays are `y`'s."""

    def leaf(a: Any, b: Any) -> Any:
        return jnp.where(condition, a, b) if isinstance(b, jax.Array | np.ndarray) else b

    return jax.tree.map(leaf, x, y)


def zeros_like(x: PyTree) -> PyTree:
    """The zero vector of the space of `x`."""
    return jax.tree.map(lambda leaf: placed(jnp.zeros_like(leaf), leaf), x)


def all_finite(x: PyTree) -> Array:
    """Whether every entry is finite, as a boolean scalar."""
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(x)]
    return reduce(jnp.logical_and, flags) if flags else jnp.asarray(True)


def size(x: PyTree) -> int:
    """Number of scalar entries (static)."""
    return sum(leaf.size for leaf in jax.tree.leaves(x))


def dots(rows: PyTree, v: PyTree) -> Array:
    """`⟨row_i, v⟩` for vectors stacked along the first axis of each leaf."""

    def leaf(b: Array, a: Array) -> Array:
        if split(a):
            return jnp.sum(b * a, axis=tuple(range(1, b.ndim)))
        return jnp.tensordot(b, a, a.ndim, precision=_HIGHEST)

    parts = jax.tree.map(leaf, rows, v)
    return reduce(jnp.add, jax.tree.leaves(parts))


def combine(weights: Array, rows: PyTree) -> PyTree:
    """`Σ weights_i row_i`."""
    return jax.tree.map(
        lambda b: jnp.tensordot(weights.astype(b.dtype), b, 1, precision=_HIGHEST), rows
    )
