"""What a linear solver is given: a map known only by its products."""

import equinox as eqx
from jaxtyping import Array

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

    def require_symmetric(self, method: str) -> None:
        """Raise `ValueError` that `method` needs it, if the operator is not marked symmetric."""
        if not self.symmetric:
            raise ValueError(
                f"{method}: expected a symmetric operator, received one that is not (a fixed point "
                "or a user-given optimality map). Use GMRES, BiCGStab or NormalCG, or declare the "
                "map symmetric if it is the gradient of something."
            )


def symmetric_operator(mv: Product) -> LinearOperator:
    """The operator of a symmetric product, e.g. of a Hessian."""
    return LinearOperator(mv, mv, symmetric=True)
