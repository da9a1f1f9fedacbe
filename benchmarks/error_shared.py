"""Hypergradients by many linear solvers, with few compilations: the parts of `error_coverage`.

Nearly all of a hypergradient's program is the same whichever linear solver is used: the losses,
their derivatives and the error estimate. So a family has three programs: its truth; one that
takes down the matrix and the right-hand side which the estimator hands to its linear solver
(`Asked`); and one in which the estimator is answered with a solution (`Answered`), which returns
the gradient, its estimated error, and what `strict` makes of it. The solvers work in between, on
matrices, one program for each solver and size, whatever the family.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad import BilevelProblem, ErrorEstimate, ImplicitDifferentiation, Newton
from hypergrad.compiled import doubts
from hypergrad.linear import LinearOperator, LinearSolution, LinearSolver, symmetric_operator
from hypergrad.linear.dense import materialise
from hypergrad.outcome import Outcome


class Asked(LinearSolver):
    """Solves nothing, and keeps the matrix and the right-hand side as its state."""

    def solve(self, operator: Any, rhs: Any, *, initial: Any = None) -> LinearSolution:
        """See `LinearSolver.solve`."""
        rhs = jax.tree.map(jnp.asarray, rhs)
        flat = ravel_pytree(rhs)[0]
        state = (materialise(operator, rhs), flat)
        unknown = jnp.full((), jnp.nan, flat.dtype)
        none = jnp.zeros((), jnp.int32)
        return LinearSolution(rhs, unknown, none, Outcome.solved, unknown, unknown, state)

    def solve_scaled(self, system: Any) -> LinearSolution:
        """Not reached."""
        raise NotImplementedError


class Answered(LinearSolver):
    """Has the solution already, its `value` one flat array."""

    solution: LinearSolution

    def solve(self, operator: Any, rhs: Any, *, initial: Any = None) -> LinearSolution:
        """See `LinearSolver.solve`."""
        flat, unravel = ravel_pytree(rhs)
        value = unravel(self.solution.value.astype(flat.dtype))
        return eqx.tree_at(lambda s: s.value, self.solution, value)

    def solve_scaled(self, system: Any) -> LinearSolution:
        """Not reached."""
        raise NotImplementedError


def asking(problem: BilevelProblem) -> Callable:
    """A program for the matrix and the right-hand side of the adjoint system."""
    estimator = ImplicitDifferentiation(None, Asked(), error_estimate=False)

    @eqx.filter_jit
    def ask(w: Any, lam: Any, train: Any, valid: Any, key: Any) -> tuple:
        state = estimator.init(problem, w, lam, train, key=key)
        out = estimator.hypergradient(problem, state, lam, train, valid, key=key)
        return out.state.linear_state

    return ask


# Sizes to which systems are extended, so that few programs serve all.
SIZES = (8, 32, 64, 320)


def solved(solver: LinearSolver, matrix: Any, rhs: Any, symmetric: bool) -> LinearSolution:
    """The adjoint system, solved.

    It is extended by a multiple of the identity, beside a right-hand side of zeros, which neither
    changes the solution nor lengthens the spectrum.
    """
    count = len(rhs)
    more = next(size for size in SIZES if size >= count) - count
    size = jnp.mean(jnp.abs(jnp.diagonal(matrix)))
    wide = jnp.pad(matrix, (0, more)) + size * jnp.diag(jnp.arange(count + more) >= count)
    solution = _solved(solver, wide.astype(matrix.dtype), jnp.pad(rhs, (0, more)), symmetric)
    return eqx.tree_at(lambda s: s.value, solution, solution.value[:count])


@eqx.filter_jit
def _solved(solver: LinearSolver, matrix: Any, rhs: Any, symmetric: bool) -> LinearSolution:
    """Only the solver's class and the size compile anew."""

    def mv(v: Any) -> Any:
        return jnp.matmul(matrix, v, precision=jax.lax.Precision.HIGHEST)

    def transpose_mv(v: Any) -> Any:
        return jnp.matmul(matrix.T, v, precision=jax.lax.Precision.HIGHEST)

    operator = LinearOperator(mv, transpose_mv, symmetric=False)
    solution = solver.solve(symmetric_operator(mv) if symmetric else operator, rhs)
    return eqx.tree_at(lambda s: s.state, solution, None, is_leaf=lambda leaf: leaf is None)


def answering(problem: BilevelProblem, estimate: ErrorEstimate) -> Callable:
    """A program from a stack of solutions to gradients, their errors, and refusals by `strict`."""

    @eqx.filter_jit
    def answer(solutions: Any, w: Any, lam: Any, train: Any, valid: Any, key: Any) -> tuple:
        def one(solution: LinearSolution) -> tuple:
            estimator = ImplicitDifferentiation(None, Answered(solution), error_estimate=estimate)
            return judged(estimator, problem, w, lam, train, valid, key)

        return jax.lax.map(one, solutions)

    return answer


def judged(
    estimator: Any, problem: BilevelProblem, w: Any, lam: Any, train: Any, valid: Any, key: Any
) -> tuple:
    """The gradient, its estimated error, and whether `strict` refuses it."""
    state = estimator.init(problem, w, lam, train, key=key)
    state, _ = estimator.fit(problem, state, lam, train, key=key)
    out = estimator.hypergradient(problem, state, lam, train, valid, key=key)
    refused = jnp.stack([doubt.holds for doubt in doubts(out.info) if doubt.refuse])
    return ravel_pytree(out.grad)[0], out.info.error, jnp.any(refused)


def truth_of(problem: BilevelProblem, solved: bool) -> Callable:
    """A program for the solution, a random drift from it, the hypergradient, and what it is worth.

    The hypergradient comes from matrices formed in full and a singular value decomposition.
    """

    @eqx.filter_jit
    def truth(start: Any, lam: Any, train: Any, valid: Any, key: Any) -> tuple:
        star = start
        if not solved:
            star = Newton(max_steps=300).run(problem, start, lam, train, key=key).params
        w, unravel_w = ravel_pytree(star)
        h, unravel_h = ravel_pytree(lam)

        def residual(w: Any, h: Any) -> Any:
            return ravel_pytree(problem.residual(unravel_w(w), unravel_h(h), train, key))[0]

        def outer(w: Any, h: Any) -> Any:
            return problem.outer_loss(unravel_w(w), unravel_h(h), valid, key)[0]

        jacobian, mixed = jax.jacobian(residual, 0)(w, h), jax.jacobian(residual, 1)(w, h)
        cotangent, direct = jax.grad(outer, (0, 1))(w, h)
        left, values, right = jnp.linalg.svd(jacobian)
        kept = values > 1e-13 * len(values) * values[0]
        inverse = (right.T * jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)) @ left.T
        condition = values[0] / jnp.min(jnp.where(kept, values, jnp.inf))
        drift = jax.random.normal(jax.random.key(1), w.shape)
        drift = jnp.linalg.solve(jacobian + 1e-3 * values[0] * jnp.eye(len(w)), drift)
        drift = unravel_w(drift / jnp.linalg.norm(drift) * jnp.linalg.norm(w))
        return star, drift, direct - mixed.T @ (inverse.T @ cotangent), condition

    return truth
