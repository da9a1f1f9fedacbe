"""The inverse of the linearised inner problem, as the error estimate uses it.

An estimate is as good as what its solves reach. Where the matrix is small it is formed and
decomposed, so that nothing is out of reach; above, a Krylov method goes as far as its budget, and
says what it left.
"""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from hypergrad.implicit.adjoint import JacobianSystem, LinearSystem
from hypergrad.implicit.units import Units
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.dense import materialise
from hypergrad.linear.solution import LinearSolution


class Answer(eqx.Module):
    """An approximate `x = J⁻¹ b`.

    **Fields:**

    - `value`: `x`.
    - `left`: `‖b − J x‖ / ‖b‖`, what was not reached of `b`; zero for `b = 0`.
    - `indefinite`: a direction of negative curvature was met.
    - `products`: spent on it.
    """

    value: PyTree
    left: Scalar
    indefinite: Bool[Array, ""]
    products: Int[Array, ""]


class Inverse(eqx.Module):
    """Solves `J x = b` and `Jᵀ x = b`, everything in `units`.

    `partial`: it may leave a part of `b`, which is then to be judged as well.
    """

    partial: ClassVar[bool]
    units: eqx.AbstractVar[Units]

    @property
    @abstractmethod
    def products(self) -> int:
        """Products spent before the first solve."""

    @abstractmethod
    def solve(self, rhs: PyTree) -> Answer:
        """Solve `J x = rhs`."""

    @abstractmethod
    def solve_adjoint(self, rhs: PyTree) -> Answer:
        """Solve `Jᵀ x = rhs`."""

    @abstractmethod
    def multiply(self, v: PyTree) -> PyTree:
        """`J v`."""

    @abstractmethod
    def gain(self, observed: Scalar) -> Scalar:
        """How much `J⁻¹` may lengthen a vector that it did not reach.

        **Arguments:**

        - `observed`: the largest such factor of the solves made.
        """


class KrylovInverse(Inverse):
    """By a Krylov method, within its tolerance and number of steps."""

    partial: ClassVar[bool] = True
    units: Units
    system: LinearSystem
    solver: LinearSolver

    @property
    def products(self) -> int:
        """See `Inverse.products`."""
        return self.units.products

    def solve(self, rhs: PyTree) -> Answer:
        """See `Inverse.solve`."""
        return _answer(self.system.solve(self.solver, rhs))

    def solve_adjoint(self, rhs: PyTree) -> Answer:
        """See `Inverse.solve_adjoint`."""
        return _answer(self.system.solve_adjoint(self.solver, rhs))

    def multiply(self, v: PyTree) -> PyTree:
        """See `Inverse.multiply`."""
        return self.system.jacobian().mv(v)

    def gain(self, observed: Scalar) -> Scalar:
        """See `Inverse.gain`: no more than was seen is known."""
        return observed


def _answer(solution: LinearSolution) -> Answer:
    left = jnp.where(solution.breakdown, jnp.inf, solution.residual)
    return Answer(solution.value, left, solution.nonpositive_curvature, solution.products)


class DenseInverse(Inverse):
    """By all singular values, without those that rounding cannot tell from zero.

    **Fields:** `J = left · diag(values) · rightᵀ`; the values are signed for a symmetric `J`.
    """

    partial: ClassVar[bool] = False
    units: Units
    left: Float[Array, "n n"]
    values: Float[Array, " n"]
    right: Float[Array, "n n"]
    smallest: Scalar

    @property
    def products(self) -> int:
        """See `Inverse.products`: one a column."""
        return len(self.values)

    def solve(self, rhs: PyTree) -> Answer:
        """See `Inverse.solve`."""
        return self._through(self.left, self.right, rhs)

    def solve_adjoint(self, rhs: PyTree) -> Answer:
        """See `Inverse.solve_adjoint`."""
        return self._through(self.right, self.left, rhs)

    def multiply(self, v: PyTree) -> PyTree:
        """See `Inverse.multiply`."""
        flat, unravel = vector.flattened(v)
        highest = jax.lax.Precision.HIGHEST
        coefficients = self.values * jnp.matmul(self.right.T, flat, precision=highest)
        return unravel(jnp.matmul(self.left, coefficients, precision=highest))

    def gain(self, observed: Scalar) -> Scalar:
        """See `Inverse.gain`: the inverse of the smallest value that was kept apart from zero."""
        return jnp.maximum(observed, 1 / self.smallest)

    def _through(self, outof: Array, into: Array, rhs: PyTree) -> Answer:
        flat, unravel = vector.flattened(rhs)
        highest = jax.lax.Precision.HIGHEST
        size = vector.norm(flat)
        coefficients = jnp.matmul(outof.T, flat / jnp.where(size > 0, size, 1), precision=highest)
        kept = jnp.abs(self.values) > self.smallest
        scaled = jnp.where(kept, coefficients / jnp.where(kept, self.values, 1), 0)
        value = unravel(size * jnp.matmul(into, scaled, precision=highest))
        left = vector.norm(jnp.where(kept, 0, coefficients))
        indefinite = jnp.any(self.values < -self.smallest)
        return Answer(value, left, indefinite, jnp.zeros((), jnp.int32))


def dense_inverse(system: LinearSystem, like: PyTree, unit: Scalar | float) -> DenseInverse:
    """Form and decompose the matrix of `system`: one product a parameter, side by side.

    **Arguments:**

    - `like`: a vector of the space, in the dtypes of the solve.
    - `unit`: the rounding unit of the products.
    """
    operator = system.jacobian()
    matrix = materialise(operator, like)
    finite = jnp.all(jnp.isfinite(matrix))
    matrix = jnp.where(finite, matrix, 0)
    units = Units.by_matrix(matrix)
    matrix = units.diagonal[:, None] * matrix * units.diagonal
    if operator.symmetric:
        values, left = jnp.linalg.eigh((matrix + matrix.T) / 2)
        right = left
    else:
        left, values, transposed = jnp.linalg.svd(matrix)
        right = transposed.T
    # Rounding moves a singular value by about the unit times the largest, and more with the size.
    noise = unit * (4 + jnp.sqrt(matrix.shape[0])) * jnp.max(jnp.abs(values), initial=0)
    tiny = jnp.finfo(values.dtype).tiny
    smallest = jnp.maximum(noise, tiny).astype(values.dtype)
    units = Units(vector.flattened(like)[1](units.diagonal))
    return DenseInverse(units, left, values, right, smallest)


def krylov_inverse(system: LinearSystem, like: PyTree, solver: LinearSolver) -> KrylovInverse:
    """By products with `system`, in units that even its rows where the system can be scaled."""
    if not isinstance(system, JacobianSystem):
        return KrylovInverse(Units.of_user(like), system, solver)
    units = Units.by_products(system.operator, like)
    return KrylovInverse(units, JacobianSystem(units.scaled(system.operator)), solver)
