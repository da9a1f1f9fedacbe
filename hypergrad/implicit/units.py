"""Units of the parameters in which all rows of the linearised inner problem are alike.

Parameters of a model may be in metres or in millimetres. In the user's units those of small
curvature look like weak directions, or like none at all beside rounding; in these they do not.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.random import random_signs

# Each sweep halves the exponents that are left, which of a matrix are some hundreds at most.
_SWEEPS = 8
# Products of `Units.by_products`: of sixteen decades one is left.
_PRODUCTS = 4


class Units(eqx.Module):
    """A diagonal `D`: parameters `w = D u`, gradients `∂/∂u = D ∂/∂w`, products `D A D`.

    - `diagonal`: powers of two, so that going there and back is exact.
    - `products`: what it took to find them.
    """

    diagonal: PyTree
    products: int = eqx.field(static=True, default=0)

    @classmethod
    def of_user(cls, like: PyTree) -> "Units":
        """Those that are given."""
        return cls(jax.tree.map(lambda a: jnp.ones((), a.dtype), like))

    @classmethod
    def by_matrix(cls, matrix: Float[Array, "n n"]) -> "Units":
        """All rows and columns of `D A D` have a largest entry of about one (Ruiz 2001)."""
        size = jnp.maximum(jnp.abs(matrix), jnp.abs(matrix.T))

        def sweep(_: Array, units: Array) -> Array:
            return _evened(units, jnp.max(units[:, None] * size * units, axis=1, initial=0))

        ones = jnp.ones(len(matrix), matrix.dtype)
        return cls(_power_of_two(jax.lax.fori_loop(0, _SWEEPS, sweep, ones)))

    @classmethod
    def by_products(cls, operator: LinearOperator, like: PyTree) -> "Units":
        """The same from products with random signs, which show the rows' lengths (Bradley 2010)."""

        def sweep(diagonal: PyTree, key: Array) -> tuple[PyTree, None]:
            image = cls(diagonal).scaled(operator).mv(random_signs(like, key))
            return jax.tree.map(_evened, diagonal, image), None

        ones = jax.tree.map(jnp.abs, random_signs(like))
        keys = jax.random.split(jax.random.key(0), _PRODUCTS)
        diagonal, _ = jax.lax.scan(sweep, ones, keys)
        return cls(jax.tree.map(_power_of_two, diagonal), _PRODUCTS)

    def into(self, w: PyTree) -> PyTree:
        """`D⁻¹ w`: parameters, or an adjoint, in these units."""
        return jax.tree.map(lambda a, unit: a / unit, w, self.diagonal)

    def back(self, u: PyTree) -> PyTree:
        """`D u`: parameters in the user's units; or a gradient in these."""
        return jax.tree.map(lambda a, unit: a * unit, u, self.diagonal)

    def scaled(self, operator: LinearOperator) -> LinearOperator:
        """`D A D`."""
        return LinearOperator(
            lambda v: self.back(operator.mv(self.back(v))),
            lambda v: self.back(operator.transpose_mv(self.back(v))),
            operator.symmetric,
        )

    @property
    def spread(self) -> Scalar:
        """The root mean square of `1 / D`: the share of an entry in a length of the user's."""
        count = vector.size(self.diagonal)
        if not count:
            return jnp.ones(())
        return vector.norm(jax.tree.map(lambda unit: 1 / unit, self.diagonal)) / count**0.5


def _evened(units: Array, rows: Array) -> Array:
    rows = jnp.abs(rows)
    return units / jnp.sqrt(jnp.where((rows > 0) & jnp.isfinite(rows), rows, 1))


def _power_of_two(units: Array) -> Array:
    # Exactly, which an exponential is not.
    return jnp.ldexp(jnp.ones_like(units), jnp.round(jnp.log2(units)).astype(jnp.int32))
