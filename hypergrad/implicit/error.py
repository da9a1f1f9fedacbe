"""A-posteriori estimate of the error of an implicit hypergradient.

With the Lagrangian `L(w, λ, q) = g(w, λ) − ⟨∂f/∂w(w, λ), q⟩` all pieces are gradients of a scalar:

    ∂L/∂λ = the hypergradient at (w, q)       ∂L/∂w = ∂g/∂w − H q, the linear residual
    ∂L/∂q = −∂f/∂w, the inner residual

and at the exact `(w*, q*)` the last two vanish. So take one Newton step for both: `e = H⁻¹ ∂f/∂w`
moves `w` to the solution; there the linear residual `ρ` shows by how much `q` has to change,
`δ = H⁻¹ ρ`; the hypergradient then changes by

    Δ = ∂L/∂λ(w − e, q) − ∂L/∂λ(w, q) − Cᵀ δ.

`‖Δ‖` estimates the error, inflated by `1 / (1 − θ)`: a second Newton step `e₁` from `w − e` shows
the contraction `θ = ‖e₁‖ / ‖e‖` that the first one really achieved. (The ratio of steps, not of
residuals: it does not change with the conditioning; Deuflhard, *Newton Methods for Nonlinear
Problems*, section 2.1.) In the words of inexact bilevel methods this is the computable counterpart
of the bounds of Pedregosa (2016, theorem 2) and Salehi et al. (2024), which need Lipschitz
constants; it takes three loose solves and two evaluations of `∂L`.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.solution import LinearSolution


class ErrorEstimate(eqx.Module):
    """How `ImplicitDifferentiation` estimates its error.

    **Arguments:**

    - `solver`: for the three loose solves. `None` takes CG to a relative residual of 1e-2 within 50
      products, or for a system that is not symmetric the estimator's own solver.
    - `safety`: factor on the estimate. The default makes it cover the true error in at least 95 %
      of the cases of `benchmarks/error_coverage.py`.
    """

    solver: LinearSolver | None = None
    safety: float | Scalar = 2.0

    def chosen(self, own: LinearSolver, *, symmetric: bool) -> LinearSolver:
        """The solver for the loose solves."""
        if self.solver is not None:
            return self.solver
        return CG(tol=1e-2, max_steps=50) if symmetric else own


class Sensitivity(eqx.Module):
    """`∂L/∂λ`, `∂L/∂w` and the inner residual, all at one point."""

    gradient: PyTree
    linear: PyTree
    inner: PyTree


def estimate_error(
    options: ErrorEstimate,
    at: Callable[[PyTree], Sensitivity],
    mixed: Callable[[PyTree], PyTree],
    solve_forward: Callable[[PyTree], LinearSolution],
    solve_adjoint: Callable[[PyTree], LinearSolution],
    origin: PyTree,
    noise: Scalar,
    symmetric: bool,
) -> Scalar:
    """Estimate `‖gradient − truth‖ / ‖gradient‖`.

    **Arguments:**

    - `options`: see `ErrorEstimate`.
    - `at`: displacement `e -> Sensitivity` at `w − e`, with the same `q`.
    - `mixed`: `δ -> Cᵀ δ`.
    - `solve_forward`, `solve_adjoint`: `b -> solution` of `H x = b`, `Hᵀ x = b`.
    - `origin`: the displacement zero, in the dtypes of the solutions.
    - `noise`: the rounding error in the norm of the inner residual.
    - `symmetric`: the system has to be positive definite; otherwise curvature means nothing.

    **Returns:** the estimate, infinite where the Newton step does not contract or the curvature is
    not positive.
    """

    def newton(displacement: PyTree, _: None) -> tuple[PyTree, tuple]:
        pieces = at(displacement)
        step = solve_forward(pieces.inner)
        failed = (step.nonpositive_curvature & symmetric) | step.breakdown
        moved = vector.axpy(1, step.value, displacement)
        return moved, (pieces, vector.norm(step.value), failed)

    # Both Newton steps in one loop: the program holds their solve once.
    _, (pieces, lengths, failed) = jax.lax.scan(newton, origin, None, length=2)
    here, there = (jax.tree.map(lambda a, i=i: a[i], pieces) for i in range(2))
    change = solve_adjoint(there.linear)
    correction = mixed(change.value)
    delta = vector.sub(vector.sub(there.gradient, here.gradient), correction)

    # Once the inner residual is rounding error no step can reduce it, and none has to.
    rounded = vector.norm(there.inner) <= noise
    contraction = jnp.where(rounded | (lengths[0] == 0), 0, lengths[1] / lengths[0])
    inflation = jnp.where(contraction < 1, options.safety / (1 - contraction), jnp.inf)

    norm = vector.norm(here.gradient)
    rounding = 10 * jnp.finfo(norm.dtype).eps
    distance = vector.norm(delta)
    error = jnp.where(distance > 0, inflation * distance / norm, 0) + rounding
    error = jnp.where((norm == 0) & (distance == 0), 0, error)
    unreliable = (
        failed[0]
        | (failed[1] & ~rounded)
        | (change.nonpositive_curvature & symmetric)
        | change.breakdown
        | ~jnp.isfinite(error)
    )
    return jnp.where(unreliable, jnp.inf, error)
