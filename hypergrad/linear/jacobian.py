"""The Jacobian of an inner residual as a linear operator, and who can solve with it."""

import jax
from jaxtyping import PyTree

from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.gmres import GMRES
from hypergrad.linear.operator import LinearOperator, symmetric_operator
from hypergrad.linear.vector import Product


def jacobian_operator(product: Product, like: PyTree, *, symmetric: bool) -> LinearOperator:
    """The operator `J` of a linear map, acting on vectors in at least float32.

    **Arguments:**

    - `product`: `v -> J v` on pytrees of the dtypes of `like`.
    - `like`: the inner point.
    - `symmetric`: `J` is a Hessian.
    """
    mv = vector.widened(product, like)
    if symmetric:
        return symmetric_operator(mv)
    transpose = jax.linear_transpose(product, like)
    return LinearOperator(mv, vector.widened(lambda v: transpose(v)[0], like), symmetric=False)


def solver_for(solver: LinearSolver, *, symmetric: bool) -> LinearSolver:
    """The solver itself; for a system that is not symmetric a `CG` becomes a `GMRES`."""
    if isinstance(solver, CG) and not symmetric:
        return GMRES(tol=solver.tol, max_steps=solver.max_steps)
    return solver
