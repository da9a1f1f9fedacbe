"""The pure form: an inner solver through which `jax.grad`, `jax.jvp` and `jax.hessian` go.

The derivative is attached by the implicit function theorem (Blondel et al. 2022): the solver itself
is never differentiated, whatever it does inside.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from hypergrad.expected import require
from hypergrad.inner import as_inner_solver
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.jacobian import jacobian_operator, solver_for
from hypergrad.problem import BilevelProblem
from hypergrad.residual import oriented
from hypergrad.restricted import RestrictedProblem


def implicit_solver(
    problem: BilevelProblem,
    solver: Any,
    linear_solver: LinearSolver = CG(),  # noqa: B008 (immutable)
    *,
    strict: bool = True,
) -> Callable[..., PyTree]:
    """A function `solve(params, hparams, batch=None, key=None) -> params` to differentiate through.

    Differentiable in `hparams` and `batch`, in reverse mode (one linear solve per cotangent), in
    forward mode (one per tangent: the cheaper one for few hyperparameters and many outer losses)
    and to any order. Under `vmap` over cotangents, as in `jax.jacrev`, several right-hand sides are
    solved at once. The derivative in the initial `params` is zero.

    **Arguments:**

    - `problem`: its inner loss or optimality map defines the solution; the outer loss is not used.
    - `solver`: whatever `as_inner_solver` takes. It must solve the inner problem well: the
      derivative is that of the exact solution, evaluated where the solver stopped.
    - `linear_solver`: for the tangent and the adjoint system; `GMRES` replaces a `CG` where the
      system is not symmetric.
    - `strict`: a linear solve that breaks down, or ends with a relative residual above 0.1, is a
      runtime error. The pure form has no other way to tell.

    !!! example

        ```python
        solve = implicit_solver(problem, optax.lbfgs())
        grad = jax.grad(lambda lam: outer(solve(w0, lam, train), lam, valid))(lam)
        ```
    """
    require("implicit_solver", "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    inner = as_inner_solver(solver)
    require("implicit_solver", "linear_solver", linear_solver, LinearSolver, "CG()")
    symmetric = problem.optimality is None
    chosen = solver_for(linear_solver, symmetric=symmetric)

    def linear_solve(product: Callable, rhs: PyTree) -> PyTree:
        operator = jacobian_operator(product, rhs, symmetric=symmetric)
        solution = chosen.solve(operator, rhs)
        if not strict:
            return solution.value
        return eqx.error_if(
            solution.value,
            solution.breakdown | (solution.residual > 0.1),
            "implicit_solver: the linear system of the derivative was not solved (singular or "
            "indefinite inner Hessian, or a number that is not finite).",
        )

    def tangent_solve(product: Callable, rhs: PyTree) -> PyTree:
        return jax.lax.custom_linear_solve(
            product, rhs, linear_solve, transpose_solve=linear_solve, symmetric=symmetric
        )

    def solve(
        params: PyTree, hparams: PyTree, batch: PyTree = None, key: Array | None = None
    ) -> PyTree:
        signed = oriented(problem, params, hparams, batch, key)
        given = RestrictedProblem(signed, params, hparams, batch, key=key)

        def run(_: Callable, start: PyTree) -> PyTree:
            solution = inner.run(problem, given.params_at(start), hparams, batch, key=key)
            return eqx.filter(solution.params, eqx.is_inexact_array)

        # Transformations of JAX want functions that can be hashed; a bound method here cannot.
        residual = lambda w: given.residual(w)  # noqa: E731
        found = jax.lax.custom_root(residual, given.w, run, tangent_solve)
        return given.params_at(found)

    return solve
