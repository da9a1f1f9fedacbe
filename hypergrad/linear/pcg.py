"""Preconditioned conjugate gradient for `A x = b` with `A` symmetric positive definite.

Concus, Golub & O'Leary (1976).
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Int, Scalar

from hypergrad.expected import require
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.conjugate import begin, conjugate_gradient
from hypergrad.linear.preconditioner import Jacobi, Preconditioner
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.system import System


class PCG(IterativeSolver):
    """Conjugate gradient with a preconditioner; one product a step, and those of the building.

    Cut short by `max_steps`, it returns the last iterate, as `CG` does: the energy norm of its
    error falls from step to step, where the residual may rise.

    On a direction of non-positive curvature it stops, returns the iterate before and says so. A
    preconditioner that is not positive definite is a `breakdown`.

    **Arguments:**

    - `preconditioner`: a recipe (`Jacobi()`, the default; `NystromPreconditioner()`), built from
      the operator at every solve, or one that is built already (`Diagonal(d)`, or what a recipe's
      `build` returned at an earlier outer step).
    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps. May be traced. Default 1000.
    """

    symmetric_only: ClassVar[bool] = True

    preconditioner: Preconditioner = Jacobi()

    def __init__(
        self,
        preconditioner: Preconditioner = Jacobi(),  # noqa: B008 (immutable)
        tol: float | Scalar = 1e-6,
        max_steps: int | Int[Array, ""] = 1000,
    ) -> None:
        require("PCG", "preconditioner", preconditioner, Preconditioner, "Jacobi()")
        self.preconditioner, self.tol, self.max_steps = preconditioner, tol, max_steps

    @property
    def building(self) -> int:
        """See `LinearSolver.building`."""
        return self.preconditioner.building

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        # Kept preconditioners are passed on, and so on vectors of the caller's form.
        inverse, building = self.preconditioner.build(system.unpacked, system.packing.like)
        solution = conjugate_gradient(self, system, begin(system), system.packing.around(inverse))
        return eqx.tree_at(lambda s: s.products, solution, solution.products + building)
