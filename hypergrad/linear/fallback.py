"""One solver, and another for the systems that the first is not made for."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.minres import MINRES


class Fallback(LinearSolver):
    """Solve with `first`; where it met non-positive curvature or broke down, with `second`.

    The second solve happens only if it is needed (under `vmap`: if any of the systems needs it). It
    starts from the first one's iterate. Fallbacks nest.

    **Arguments:**

    - `first`: default `CG()`.
    - `second`: default `MINRES()`.

    The solution counts the products of both and says `nonpositive_curvature` if either met it;
    `breakdown` is that of the solver whose answer is returned.
    """

    first: LinearSolver = CG()
    second: LinearSolver = MINRES()

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSolver.solve`."""
        one = self.first.solve(operator, rhs, initial=initial)

        def again() -> LinearSolution:
            two = self.second.solve(operator, rhs, initial=one.value)
            return LinearSolution(
                value=two.value,
                residual=two.residual.astype(one.residual.dtype),
                products=one.products + two.products,
                nonpositive_curvature=one.nonpositive_curvature | two.nonpositive_curvature,
                breakdown=two.breakdown,
                curvature_min=jnp.fmin(one.curvature_min, two.curvature_min),
                curvature_max=jnp.fmax(one.curvature_max, two.curvature_max),
                recollection=one.recollection,
            )

        failed = one.nonpositive_curvature | one.breakdown
        return jax.lax.cond(failed, again, lambda: one)

    def blank(self, like: PyTree) -> PyTree:
        """What `first` knows; see `LinearSolver.blank`."""
        return self.first.blank(like)

    def recalling(self, recollection: PyTree) -> Self:
        """With what `first` learned; see `LinearSolver.recalling`."""
        return eqx.tree_at(lambda s: s.first, self, self.first.recalling(recollection))
