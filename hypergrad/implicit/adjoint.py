"""The linear systems of implicit differentiation: forward `J x = b` and adjoint `Jᵀ x = b`."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver, symmetric_operator
from hypergrad.linear.vector import Product


class LinearSystem(eqx.Module):
    """A linearised inner problem, to be solved with a `LinearSolver`.

    Right-hand sides are divided by their largest entry before solving: both solves return the
    solution of the scaled system, and what it has to be multiplied with.
    """

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether the system to be solved is symmetric."""

    @abstractmethod
    def jacobian(self) -> LinearOperator:
        """`J` itself, not reduced."""

    @abstractmethod
    def damped(self, damping: float | Scalar) -> "LinearSystem":
        """The system of `J + damping I`."""

    @abstractmethod
    def solve(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> tuple[LinearSolution, Scalar]:
        """Solve `J x = rhs`."""

    @abstractmethod
    def solve_adjoint(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> tuple[LinearSolution, Scalar]:
        """Solve `Jᵀ x = rhs`."""


class JacobianSystem(LinearSystem):
    """The whole Jacobian of the inner residual: the Hessian, for a smooth inner loss."""

    operator: LinearOperator

    @property
    def symmetric(self) -> bool:
        """Whether `J = Jᵀ`."""
        return self.operator.symmetric

    def jacobian(self) -> LinearOperator:
        """See `LinearSystem.jacobian`."""
        return self.operator

    def damped(self, damping: float | Scalar) -> "JacobianSystem":
        """See `LinearSystem.damped`."""
        return JacobianSystem(self.operator.damped(damping))

    def solve(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> tuple[LinearSolution, Scalar]:
        """See `LinearSystem.solve`."""
        return solve_scaled(solver, self.operator, rhs, initial)

    def solve_adjoint(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> tuple[LinearSolution, Scalar]:
        """See `LinearSystem.solve_adjoint`."""
        return solve_scaled(solver, self.operator.transposed, rhs, initial)


class SupportSystem(LinearSystem):
    """A polyhedral proximal step, reduced to its active manifold.

    With `P` the projection that is the Jacobian of the proximal operator, `H` the Hessian of the
    smooth part and `s` the step, `J = (I − P (I − s H)) / s`. Both systems reduce to
    `P H P t = P c` on the range of `P`:

        Jᵀ q = b:   P H P u = P b,               q = u + s (b − H u)
        J e = b:    P H P t = P (b − s H b),     e = s b + t

    **Fields:** the products `P v` and `H v` on vectors in at least float32, and `step`.
    """

    project: Product
    hessian: Product
    step: float | Scalar

    @property
    def symmetric(self) -> bool:
        """The reduced system is symmetric."""
        return True

    def jacobian(self) -> LinearOperator:
        """See `LinearSystem.jacobian`."""

        def mv(v: PyTree) -> PyTree:
            forward = vector.axpy(-self.step, self.hessian(v), v)
            return vector.scale(1 / self.step, vector.sub(v, self.project(forward)))

        def transpose_mv(v: PyTree) -> PyTree:
            inside = self.project(v)
            outside = vector.scale(1 / self.step, vector.sub(v, inside))
            return vector.axpy(1, self.hessian(inside), outside)

        return LinearOperator(mv, transpose_mv, symmetric=False)

    def damped(self, damping: float | Scalar) -> "SupportSystem":
        """Damps the Hessian of the smooth part."""
        return SupportSystem(
            self.project, lambda v: vector.axpy(damping, v, self.hessian(v)), self.step
        )

    def _reduced(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None
    ) -> tuple[LinearSolution, Scalar]:
        def mv(v: PyTree) -> PyTree:
            inside = self.project(v)
            image = self.project(self.hessian(inside))
            return vector.axpy(1, vector.sub(v, inside), image)

        inside = self.project(vector.widen(rhs))
        twice = self.project(inside)
        gap, size = vector.norm(vector.sub(twice, inside)), vector.norm(inside)
        polyhedral = gap <= 1e-3 * size
        if initial is not None:
            initial = self.project(initial)
        solution, size = solve_scaled(solver, symmetric_operator(mv), inside, initial)
        return _broken_unless(polyhedral, solution), size

    def solve(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> tuple[LinearSolution, Scalar]:
        """See `LinearSystem.solve`."""
        rhs = vector.widen(rhs)
        moved = vector.scale(self.step, rhs)
        solution, size = self._reduced(solver, vector.sub(rhs, self.hessian(moved)), initial)
        value = vector.axpy(1, vector.scale(size, solution.value), moved)
        return eqx.tree_at(lambda s: s.value, solution, value), jnp.ones_like(size)

    def solve_adjoint(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> tuple[LinearSolution, Scalar]:
        """See `LinearSystem.solve_adjoint`."""
        level, top = levelled(rhs)
        solution, inside = self._reduced(solver, level, initial)
        u = vector.scale(inside, solution.value)
        value = vector.axpy(self.step, vector.sub(level, self.hessian(u)), u)
        solution = eqx.tree_at(lambda s: s.value, solution, value)
        return _broken_unless(jnp.isfinite(top), solution), top


def _broken_unless(condition: Array, solution: LinearSolution) -> LinearSolution:
    return eqx.tree_at(lambda s: s.breakdown, solution, solution.breakdown | ~condition)


def levelled(rhs: PyTree) -> tuple[PyTree, Scalar]:
    """`rhs` in at least float32 and divided by its largest entry, and that; zeros if not finite.

    Its square neither overflows nor underflows, whatever the unit of the outer loss.
    """
    rhs = vector.widen(rhs)
    top = vector.largest(rhs)
    finite = jnp.isfinite(top)
    # The inverse of a subnormal number overflows.
    top = jnp.where(top > 0, jnp.maximum(top, jnp.finfo(top.dtype).tiny), top)
    inverse = 1 / jnp.where(finite & (top > 0), top, 1)
    return jax.tree.map(lambda a: jnp.where(finite, a * inverse, 0.0).astype(a.dtype), rhs), top


def solve_scaled(
    solver: LinearSolver, operator: LinearOperator, rhs: PyTree, initial: PyTree | None = None
) -> tuple[LinearSolution, Scalar]:
    """Solve for the right-hand side divided by its largest entry.

    **Returns:** the solution of the scaled system, and what it has to be multiplied with. A
    right-hand side that is not finite is a breakdown: its solution is zero.
    """
    level, top = levelled(rhs)
    solution = solver.solve(operator, level, initial=initial)
    return _broken_unless(jnp.isfinite(top), solution), top
