"""The template of every linear solver, and what those share that iterate to a tolerance."""

from abc import abstractmethod
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.expected import require_count, require_scalar
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.solution import LinearSolution
from hypergrad.linear.system import System
from hypergrad.outcome import RUNNING, Outcome


class LinearSolver(eqx.Module):
    """Solves `A x = b` for a `LinearOperator` on pytrees.

    `solve` is the same for all: it refuses an operator that the method is not made for, scales the
    right-hand side, widens and packs the vectors, and takes all of that back from the answer. A
    method is one `solve_scaled`.

    Implementations are immutable, `jit`- and `vmap`-clean, and obey three rules:

    - the operator is never applied to a vector of zeros made inside the program (XLA's CPU compiler
      returns garbage for it, see `tests/hypergrad/test_platform_faults.py`); with no start, the
      first residual *is* `b`;
    - `b = 0` returns zero, with residual 0;
    - a non-finite product ends the iteration with a breakdown, never with a NaN answer.

    **Class attributes:**

    - `symmetric_only`: whether `solve` refuses an operator that is not marked symmetric.
    """

    symmetric_only: ClassVar[bool] = False

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """Solve `operator x = rhs`.

        **Arguments:**

        - `operator`: the map `A`, on vectors of the dtypes of `rhs`.
        - `rhs`: the right-hand side `b`, a pytree of inexact arrays.
        - `initial`: a start for iterative methods (warm start), of any length: it is scaled before
          use. A start of zeros is recognised at run time and costs no product.

        **Raises:** `ValueError` if the operator is not marked symmetric and has to be.
        """
        self.check(operator)
        rhs = jax.tree.map(jnp.asarray, rhs)
        system, size = System.of(operator, rhs, initial)
        return system.restored(self.solve_scaled(system), size, rhs)

    @abstractmethod
    def solve_scaled(self, system: System) -> LinearSolution:
        """Solve a system that `solve` has prepared; `System.solution` makes the answer."""

    def check(self, operator: LinearOperator) -> None:
        """Raise `ValueError` for an operator that this method is not made for."""
        if self.symmetric_only:
            operator.require_symmetric(type(self).__name__)

    @property
    def building(self) -> int:
        """Products that a solve takes before its first step, as far as known beforehand."""
        return 0

    def init_state(self, like: PyTree) -> PyTree:
        """What a solver that learns from solve to solve knows before the first; else `None`.

        `like` is a vector of the space: only shapes and dtypes matter.
        """
        return None

    def with_state(self, state: PyTree) -> Self:
        """This solver with what it learned: `init_state(...)`, or `solution.state` of a solve."""
        return self


class IterativeSolver(LinearSolver):
    """A linear solver that iterates until `‖b − A x‖ <= tol ‖b‖`, or `max_steps` are taken."""

    tol: float | Scalar = 1e-6
    max_steps: int | Int[Array, ""] = 1000

    def __check_init__(self) -> None:
        name = type(self).__name__
        require_scalar(name, "tol", self.tol)
        if isinstance(self.tol, float | int) and not self.tol >= 0:
            raise ValueError(f"{name}: tol: expected >= 0, received {self.tol}.")
        if not isinstance(self.max_steps, jax.Array):
            require_count(name, "max_steps", self.max_steps, 0)

    def with_tol(self, tol: float | Scalar) -> Self:
        """See `hypergrad.tolerance.HasTolerance`."""
        return eqx.tree_at(lambda s: s.tol, self, tol)

    def unfinished(
        self, system: System, step: Array, residual: Scalar, outcome: Outcome
    ) -> Bool[Array, ""]:
        """Whether to take one more step."""
        going = (step < self.max_steps) & (residual > self.tol * system.norm)
        return going & (outcome == RUNNING)
