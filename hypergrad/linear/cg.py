"""Conjugate gradient for `A x = b` with `A` symmetric positive definite.

Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
"""

from typing import ClassVar

from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.conjugate import begin, conjugate_gradient
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.system import System


class CG(IterativeSolver):
    """Conjugate gradient; one product a step.

    Cut short by `max_steps`, it returns the last iterate: its errors fall from step to step, in the
    energy norm and in the Euclidean one (Hestenes & Stiefel 1952), where residuals may rise above
    the first.

    On a direction of non-positive curvature it stops, returns the iterate before (Steihaug 1983)
    and says so: the operator is then not positive definite and damping, Gauss-Newton curvature or a
    solver for indefinite systems is called for.

    A warm start is first scaled by the step that minimises the energy norm of the error along it,
    so that it is never worse than no start, whatever happened to the length of `b` since.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced.
    - `max_steps`: most products spent. May be traced.
    """

    symmetric_only: ClassVar[bool] = True

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        return conjugate_gradient(self, system, begin(system))
