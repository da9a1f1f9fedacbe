"""What a linear solver is given and what it gives back."""

from abc import abstractmethod
from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.vector import Product


class LinearOperator(eqx.Module):
    """A linear map of the parameter space to itself, known only by its products.

    **Fields:**

    - `mv`: `v -> A v`.
    - `transpose_mv`: `v -> Aᵀ v`; the same as `mv` for a symmetric operator.
    - `symmetric`: whether `A = Aᵀ` (a Hessian is, the Jacobian of a fixed point seldom is).
    """

    mv: Product
    transpose_mv: Product
    symmetric: bool = eqx.field(static=True)

    @property
    def transposed(self) -> "LinearOperator":
        """The operator `Aᵀ`."""
        return LinearOperator(self.transpose_mv, self.mv, self.symmetric)

    def damped(self, damping: Array | float) -> "LinearOperator":
        """The operator `A + damping I`."""
        return LinearOperator(
            lambda v: vector.axpy(damping, v, self.mv(v)),
            lambda v: vector.axpy(damping, v, self.transpose_mv(v)),
            self.symmetric,
        )


def symmetric_operator(mv: Product) -> LinearOperator:
    """The operator of a symmetric product, e.g. of a Hessian."""
    return LinearOperator(mv, mv, symmetric=True)


class LinearSolution(eqx.Module):
    """An approximate solution of `A x = b` and how far it can be trusted.

    **Fields:**

    - `value`: `x`, a pytree like `b`. Always finite when `b` is.
    - `residual`: `‖b − A x‖ / ‖b‖` as the method knows it (zero for `b = 0`; NaN where the method
      gives a truncated answer without ever measuring it, such as `Identity`).
    - `products`: operator products spent.
    - `nonpositive_curvature`: a direction with `⟨d, A d⟩ <= 0` was met.
    - `breakdown`: a product was not finite, or the iteration diverged; `value` is the last good
      iterate.
    - `curvature_min`, `curvature_max`: smallest and largest Rayleigh quotient (or Ritz value) seen;
      NaN when the method sees none.
    - `recollection`: what the solver wants to be given back at the next solve (see
      `LinearSolver.recalling`); `None` for those that remember nothing.
    """

    value: PyTree
    residual: Scalar
    products: Int[Array, ""]
    nonpositive_curvature: Bool[Array, ""]
    breakdown: Bool[Array, ""]
    curvature_min: Scalar
    curvature_max: Scalar
    recollection: PyTree = None


class LinearSolver(eqx.Module):
    """Solves `A x = b` for a `LinearOperator` on pytrees.

    Implementations are immutable, `jit`- and `vmap`-clean, and obey three rules:

    - the operator is never applied to a vector of zeros made inside the program (XLA's CPU compiler
      returns garbage for it, see `tests/hypergrad/test_platform_faults.py`); with no `initial`, the
      first residual *is* `b`;
    - `b = 0` returns zero at no cost, with residual 0;
    - a non-finite product ends the iteration with `breakdown`, never with a NaN answer.
    """

    @abstractmethod
    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """Solve `operator x = rhs`.

        **Arguments:**

        - `operator`: the map `A`.
        - `rhs`: the right-hand side `b`, a pytree of inexact arrays.
        - `initial`: a start for iterative methods (warm start); ignored by direct ones. A start of
          zeros is recognised at run time and costs no product.
        """

    def blank(self, like: PyTree) -> PyTree:
        """What a solver that learns from solve to solve knows before the first; else `None`.

        `like` is a vector of the space: only shapes and dtypes matter.
        """
        return None

    def recalling(self, recollection: PyTree) -> Self:
        """This solver with what it learned: `blank(...)`, or `solution.recollection` of a solve."""
        return self


def unmeasured(rhs: PyTree) -> Scalar:
    """NaN in the accumulation dtype: the mark of a quantity that a method does not know."""
    return jnp.full((), jnp.nan, dtype=vector.vdot(rhs, rhs).dtype)
