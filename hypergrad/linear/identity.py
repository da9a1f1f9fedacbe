"""The identity as an inverse: `H⁻¹ ≈ scale · I`, at no product at all.

The cheapest member of the family (T1-T2 of Luketina et al. 2016; the zero-term Neumann series of
Lorraine, Vicol and Duvenaud, 2020, up to its factor). It keeps the sign of every well-scaled
direction and knows nothing of curvature.
"""

import jax.numpy as jnp
from jaxtyping import Array

from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.solution import LinearSolution, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import Outcome


class Identity(LinearSolver):
    """`x = scale * b`, whatever the operator.

    **Arguments:**

    - `scale`: the factor, e.g. the inner learning rate. Default 1.

    `residual` and the curvatures of the solution are NaN: nothing was measured. Only for `b = 0`
    is the answer known to be exact.
    """

    scale: Array | float = 1.0

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`; neither operator nor start are used."""
        x = vector.scale(self.scale, system.rhs)
        unknown = jnp.full_like(system.norm, jnp.nan)
        outcome = Outcome.where(vector.all_finite(x), Outcome.approximate, Outcome.not_finite)
        return system.solution(x, unknown, 0, outcome, nothing_met(system.norm.dtype))
