"""One solver, and another for the systems that the first is not made for."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.expected import require
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.minres import MINRES
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.system import System
from hypergrad.tolerance import HasTolerance


class Fallback(LinearSolver):
    """Solve with `first`; where it met non-positive curvature or broke down, with `second`.

    The second solve happens only if it is needed (under `vmap`: if any of the systems needs it). It
    starts from the first one's iterate. Fallbacks nest.

    **Arguments:**

    - `first`: default `CG()`.
    - `second`: default `MINRES()`.

    The solution counts the products of both and says `nonpositive_curvature` if either met it; the
    rest is that of the solver whose answer is returned.
    """

    first: LinearSolver = CG()
    second: LinearSolver = MINRES()

    def __check_init__(self) -> None:
        require("Fallback", "first", self.first, LinearSolver, "CG()")
        require("Fallback", "second", self.second, LinearSolver, "MINRES()")

    def check(self, operator: LinearOperator) -> None:
        """See `LinearSolver.check`."""
        self.first.check(operator)
        self.second.check(operator)

    def with_tol(self, tol: float | Scalar) -> Self:
        """With another tolerance for both, as far as they have one."""
        both = (self.first, self.second)
        new = [s.with_tol(tol) if isinstance(s, HasTolerance) else s for s in both]
        return eqx.tree_at(lambda s: (s.first, s.second), self, tuple(new))

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        one = self.first.solve_scaled(system)

        def again() -> LinearSolution:
            two = self.second.solve_scaled(system.started_at(one.value))
            low = jnp.fmin(one.curvature_min, two.curvature_min)
            # The first one may know it by more than the sign: a curvature of rounding error.
            low = jnp.where(one.nonpositive_curvature, jnp.fmin(low, 0), low)
            return LinearSolution(
                value=two.value,
                residual=two.residual,
                products=one.products + two.products,
                outcome=two.outcome,
                curvature_min=low,
                curvature_max=jnp.fmax(one.curvature_max, two.curvature_max),
                state=one.state,
            )

        return jax.lax.cond(one.nonpositive_curvature | one.breakdown, again, lambda: one)

    def init_state(self, like: PyTree) -> PyTree:
        """What `first` knows; see `LinearSolver.init_state`."""
        return self.first.init_state(like)

    def with_state(self, state: PyTree) -> Self:
        """With what `first` learned; see `LinearSolver.with_state`."""
        return eqx.tree_at(lambda s: s.first, self, self.first.with_state(state))
