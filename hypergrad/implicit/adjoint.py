"""The linear systems of implicit differentiation: forward `J x = b` and adjoint `Jᵀ x = b`."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.operator import LinearOperator, symmetric_operator
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.vector import Product
from hypergrad.outcome import Outcome


class LinearSystem(eqx.Module):
    """A linearised inner problem, to be solved with a `LinearSolver` in at least float32."""

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
    ) -> LinearSolution:
        """Solve `J x = rhs`."""

    @abstractmethod
    def solve_adjoint(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> LinearSolution:
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
    ) -> LinearSolution:
        """See `LinearSystem.solve`."""
        return solver.solve(self.operator, vector.widen(rhs), initial=initial)

    def solve_adjoint(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSystem.solve_adjoint`."""
        return solver.solve(self.operator.transposed, vector.widen(rhs), initial=initial)


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

    def _reduced(self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None) -> LinearSolution:
        def mv(v: PyTree) -> PyTree:
            inside = self.project(v)
            image = self.project(self.hessian(inside))
            return vector.axpy(1, vector.sub(v, inside), image)

        inside = self.project(rhs)
        gap = vector.norm(vector.sub(self.project(inside), inside))
        polyhedral = gap <= 1e-3 * vector.norm(inside)
        if initial is not None:
            initial = self.project(initial)
        solution = solver.solve(symmetric_operator(mv), inside, initial=initial)
        known = polyhedral | solution.breakdown
        outcome = Outcome.where(known, solution.outcome, Outcome.not_polyhedral)
        return eqx.tree_at(lambda s: s.outcome, solution, outcome)

    def solve(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSystem.solve`."""
        rhs = vector.widen(rhs)
        moved = vector.scale(self.step, rhs)
        solution = self._reduced(solver, vector.sub(rhs, self.hessian(moved)), initial)
        return eqx.tree_at(lambda s: s.value, solution, vector.axpy(1, solution.value, moved))

    def solve_adjoint(
        self, solver: LinearSolver, rhs: PyTree, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSystem.solve_adjoint`."""
        rhs = vector.widen(rhs)
        solution = self._reduced(solver, rhs, initial)
        u = solution.value
        value = vector.axpy(self.step, vector.sub(rhs, self.hessian(u)), u)
        return eqx.tree_at(lambda s: s.value, solution, value)
