"""The identity as an inverse: `H⁻¹ ≈ scale · I`, at no product at all.

The cheapest member of the family (T1-T2 of Luketina et al. 2016; the zero-term Neumann series of
Lorraine, Vicol and Duvenaud, 2020, up to its factor). It keeps the sign of every well-scaled
direction and knows nothing of curvature.
"""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver, unmeasured


class Identity(LinearSolver):
    """`x = scale * b`, whatever the operator.

    **Arguments:**

    - `scale`: the factor, e.g. the inner learning rate. Default 1.

    `residual` and the curvatures of the solution are NaN: nothing was measured. Only for `b = 0`
    is the answer known to be exact.
    """

    scale: Array | float = 1.0

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """Scale `rhs`; `operator` and `initial` are not used."""
        unknown = unmeasured(rhs)
        value = vector.scale(self.scale, rhs)
        return LinearSolution(
            value=value,
            residual=jnp.where(vector.norm(rhs) == 0, 0.0, unknown).astype(unknown.dtype),
            products=jnp.zeros((), jnp.int32),
            nonpositive_curvature=jnp.asarray(False),
            breakdown=~vector.all_finite(value),
            curvature_min=unknown,
            curvature_max=unknown,
        )
