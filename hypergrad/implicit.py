"""Implicit differentiation of the inner solution.

At a point where `∂f/∂w = 0` the implicit function theorem gives

    dg/dλ = ∂g/∂λ − Cᵀ q,    H q = ∂g/∂w,    H = ∂²f/∂w²,    C = ∂²f/∂w∂λ

(Larsen et al. 1996; Bengio 2000; Pedregosa 2016; Lorraine, Vicol & Duvenaud 2020). With an
optimality map `r(w, λ) = 0` in place of the gradient, `H` becomes its Jacobian, transposed in the
adjoint system, and `C` its derivative in `λ` (Blondel et al. 2022).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.inner import InnerSolver, as_inner_solver
from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import BilevelProblem


class ImplicitState(eqx.Module):
    """What implicit differentiation carries from call to call.

    - `params`: the current inner point.
    - `adjoint`: solution of the last adjoint system for the cotangent scaled to norm 1, in at least
      float32; zeros before the first.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `solver_state`: the inner solver's own state.
    - `inner_iterations`: spent by the last `fit`.
    """

    params: PyTree
    adjoint: PyTree
    scale: Scalar
    solver_state: PyTree
    inner_iterations: Int[Array, ""]


class ImplicitDifferentiation(Estimator):
    """Hypergradients by the implicit function theorem.

    One linearisation of the inner gradient serves all products of a solve; the mixed product
    `Cᵀ q` is one more derivative. The cotangent is scaled to norm 1 before solving, so tiny and
    huge outer gradients neither underflow nor overflow, and vectors of the solve are kept in at
    least float32 whatever the parameters' dtype.

    A hyperparameter that reaches neither loss (found by tracing) is refused by name.

    **Arguments:**

    - `solver`: what `fit` runs: an `InnerSolver`, an optax optimizer, a jaxopt solver, or a
      function `fn(params, hparams, batch) -> params`. `None` takes the params that it is given as
      already solved.
    - `linear_solver`: for the adjoint system.
    - `damping`: solves with `H + damping I` instead. It makes an indefinite or singular Hessian
      tractable at the price of a bias.
    - `warm_start`: begin each solve at the last adjoint.
    """

    solver: InnerSolver | None
    linear_solver: LinearSolver
    damping: float | Scalar
    warm_start: bool = eqx.field(static=True)

    def __init__(
        self,
        solver: Any = None,
        linear_solver: LinearSolver = CG(),  # noqa: B008 (immutable)
        *,
        damping: float | Scalar = 0.0,
        warm_start: bool = True,
    ) -> None:
        if isinstance(damping, float | int) and damping < 0:
            raise ValueError(f"damping must be >= 0, got {damping}.")
        if not isinstance(linear_solver, LinearSolver):
            raise ValueError(
                f"linear_solver must be a LinearSolver, got {type(linear_solver).__name__}."
            )
        self.solver = None if solver is None else as_inner_solver(solver)
        self.linear_solver = linear_solver
        self.damping = damping
        self.warm_start = warm_start

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> ImplicitState:
        """The state at `params`; costs one inner gradient and one product, for the scale."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)
        if not jax.tree.leaves(dynamic):
            raise ValueError("params has no leaf that is a floating-point array.")
        # A barrier, so that zero params made inside a program do not reach the product as a
        # constant (see `hypergrad.linear.base`).
        dynamic = jax.lax.optimization_barrier(dynamic)
        residual_of = _residual_of(problem, static, hparams, inner_batch, key)
        residual, image = jax.jvp(residual_of, (dynamic,), (dynamic,))
        scale = jnp.fmax(vector.norm(residual), vector.norm(image))
        return ImplicitState(
            params=params,
            adjoint=vector.zeros_like(_accumulating(dynamic)),
            scale=jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1),
            solver_state=None if self.solver is None else self.solver.init(problem, params),
            inner_iterations=jnp.zeros((), jnp.int32),
        )

    def fit(
        self,
        problem: BilevelProblem,
        state: ImplicitState,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[ImplicitState, FitInfo]:
        """Run the inner solver from the state's point. Without a solver, only measure."""
        if self.solver is None:
            residual = problem.residual(state.params, hparams, inner_batch, key)
            info = FitInfo(vector.norm(residual) / state.scale, jnp.zeros((), jnp.int32))
            return state, info
        solution = self.solver.run(
            problem, state.params, hparams, inner_batch, state=state.solver_state, key=key
        )
        state = ImplicitState(
            params=solution.params,
            adjoint=state.adjoint,
            scale=state.scale,
            solver_state=solution.state,
            inner_iterations=solution.iterations,
        )
        return state, FitInfo(solution.residual / state.scale, solution.iterations)

    def hypergradient(
        self,
        problem: BilevelProblem,
        state: ImplicitState,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """See `Estimator.hypergradient`. A stochastic problem gets `key` in both losses."""
        require_effect(
            trace_paths(problem, state.params, hparams, inner_batch, outer_batch, key),
            type(self).__name__,
        )
        dynamic, static = eqx.partition(state.params, eqx.is_inexact_array)
        h, h_static = eqx.partition(hparams, eqx.is_inexact_array)

        def outer(p: PyTree, lam: PyTree) -> tuple[Scalar, PyTree]:
            point, lam = eqx.combine(p, static), eqx.combine(lam, h_static)
            return problem.outer_loss(point, lam, outer_batch, key)

        (value, aux), (cotangent, direct) = jax.value_and_grad(outer, argnums=(0, 1), has_aux=True)(
            dynamic, h
        )

        residual_of = _residual_of(problem, static, hparams, inner_batch, key)
        residual, product = jax.linearize(residual_of, dynamic)
        operator = adjoint_operator(product, dynamic, symmetric=problem.optimality is None)
        if not (isinstance(self.damping, float | int) and self.damping == 0):
            operator = operator.damped(self.damping)
        initial = state.adjoint if self.warm_start else None
        solution, size = solve_scaled(self.linear_solver, operator, cotangent, initial)

        q = _like(solution.value, dynamic)
        mixed = _mixed_product(problem, dynamic, static, h, h_static, inner_batch, key, q)
        grad = jax.tree.map(lambda d, m: (d - size * m).astype(d.dtype), direct, mixed)

        info = HypergradientInfo(
            inner_residual=vector.norm(residual) / state.scale,
            inner_iterations=state.inner_iterations,
            linear_residual=solution.residual,
            iterations=solution.products,
            nonpositive_curvature=solution.nonpositive_curvature,
            breakdown=solution.breakdown | ~vector.all_finite(grad) | ~jnp.isfinite(value),
            error=jnp.full((), jnp.nan, solution.residual.dtype),
        )
        new_state = ImplicitState(
            params=state.params,
            adjoint=solution.value if self.warm_start else state.adjoint,
            scale=state.scale,
            solver_state=state.solver_state,
            inner_iterations=state.inner_iterations,
        )
        return Hypergradient(value, grad, new_state, info, aux)


def adjoint_operator(product: Callable, like: PyTree, *, symmetric: bool) -> LinearOperator:
    """The operator of the adjoint system `Jᵀ q = g`, acting on vectors in at least float32.

    **Arguments:**

    - `product`: the linear map `v -> J v` on pytrees of the dtypes of `like`.
    - `like`: the inner point.
    - `symmetric`: `J` is a Hessian.
    """

    def widened(linear: Callable) -> Callable:
        return lambda v: _accumulating(linear(_like(v, like)))

    if symmetric:
        mv = widened(product)
        return LinearOperator(mv, mv, symmetric=True)

    def transposed(v: PyTree) -> PyTree:
        return jax.linear_transpose(product, like)(v)[0]

    return LinearOperator(widened(transposed), widened(product), symmetric=False)


def solve_scaled(
    solver: LinearSolver, operator: LinearOperator, rhs: PyTree, initial: PyTree | None = None
) -> tuple[LinearSolution, Scalar]:
    """Solve for the right-hand side scaled to norm 1.

    **Returns:** the solution of the scaled system, and the norm that it has to be multiplied with.
    A right-hand side that is not finite is a breakdown: its solution is zero.
    """
    rhs = _accumulating(rhs)
    size = vector.norm(rhs)
    finite = jnp.isfinite(size) & vector.all_finite(rhs)
    inverse = 1 / jnp.where(finite & (size > 0), size, 1)
    # Two factors, because the inverse of a subnormal norm overflows.
    half = jnp.sqrt(inverse)
    unit = jax.tree.map(lambda a: jnp.where(finite, a * half * half, 0).astype(a.dtype), rhs)
    solution = solver.solve(operator, unit, initial=initial)
    return eqx.tree_at(lambda s: s.breakdown, solution, solution.breakdown | ~finite), size


def _residual_of(
    problem: BilevelProblem, static: PyTree, hparams: PyTree, batch: PyTree, key: Array | None
) -> Callable:
    def residual(p: PyTree) -> PyTree:
        value = problem.residual(eqx.combine(p, static), hparams, batch, key)
        return eqx.filter(value, eqx.is_inexact_array)

    return residual


def _mixed_product(
    problem: BilevelProblem,
    dynamic: PyTree,
    static: PyTree,
    h: PyTree,
    h_static: PyTree,
    batch: PyTree,
    key: Array | None,
    q: PyTree,
) -> PyTree:
    """`Cᵀ q`, like the differentiable part of hparams."""
    if problem.optimality is not None:

        def residual(lam: PyTree) -> PyTree:
            return _residual_of(problem, static, eqx.combine(lam, h_static), batch, key)(dynamic)

        return jax.vjp(residual, h)[1](q)[0]

    # Of the two orders, the gradient in λ of the directional derivative along q is the cheaper: it
    # goes forward once and back once.
    def slope(lam: PyTree) -> Scalar:
        def loss(p: PyTree) -> Scalar:
            lam_full = eqx.combine(lam, h_static)
            return problem.inner_loss(eqx.combine(p, static), lam_full, batch, key)[0]

        return jax.jvp(loss, (dynamic,), (q,))[1]

    return jax.grad(slope)(h)


def _accumulating(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), tree)


def _like(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)
