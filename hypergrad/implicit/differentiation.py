"""Implicit differentiation of the inner solution.

At a point where `∂f/∂w = 0` the implicit function theorem gives

    dg/dλ = ∂g/∂λ − Cᵀ q,    H q = ∂g/∂w,    H = ∂²f/∂w²,    C = ∂²f/∂w∂λ

(Larsen et al. 1996; Bengio 2000; Pedregosa 2016; Lorraine, Vicol & Duvenaud 2020). With an
optimality map `r(w, λ) = 0` in place of the gradient, `H` becomes its Jacobian, transposed in the
adjoint system, and `C` its derivative in `λ` (Blondel et al. 2022).
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, HypergradientInfo
from hypergrad.expected import require, require_choice, require_flag, require_scalar
from hypergrad.implicit.curvature import Curvature, Hessian
from hypergrad.implicit.estimate import ErrorEstimate, Result
from hypergrad.implicit.linearisation import linearised
from hypergrad.inner import InnerSolver, as_inner_solver
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.jacobian import solver_for
from hypergrad.outcome import Outcome, worse
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import same_form
from hypergrad.residual import oriented, residual_scale
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator


class ImplicitState(eqx.Module):
    """What implicit differentiation carries from call to call.

    - `params`: the current inner point.
    - `adjoint`: solution of the last adjoint system, its cotangent divided by the largest entry, in
      at least float32; zeros before the first.
    - `cotangent_size`: that largest entry, by which `adjoint` is to be multiplied.
    - `linear_state`: what the linear solver learned, if it does.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `solver_state`: the inner solver's own state.
    - `inner_iterations`: spent by the last `fit`.
    """

    params: PyTree
    adjoint: PyTree
    cotangent_size: Scalar
    linear_state: PyTree
    scale: Scalar
    solver_state: PyTree
    inner_iterations: Int[Array, ""]


class ImplicitDifferentiation(RestrictedEstimator):
    """Hypergradients by the implicit function theorem.

    One linearisation of the inner gradient serves all products of a solve; the mixed product
    `Cᵀ q` is one more derivative. The cotangent is divided by its largest entry first, so tiny and
    huge outer gradients neither underflow nor overflow, and vectors of the solve are kept in at
    least float32 whatever the parameters' dtype.

    `init` costs one inner gradient and one product, for the scale of the inner residual. A
    stochastic problem gets the key of `hypergradient` in both losses.

    A hyperparameter that reaches neither loss (found by tracing) is refused by name, unless
    `unseen="none"`.

    **Arguments:**

    - `solver`: what `fit` runs from the state's point: an `InnerSolver`, an optax optimizer, a
      jaxopt solver, or a function `fn(params, hparams, batch) -> params`. `None` takes the params
      that it is given as already solved, and `fit` only measures.
    - `linear_solver`: for the adjoint system. With a general optimality map, whose system is not
      symmetric, a `CG` stands for `GMRES` with the same tolerance and number of steps.
    - `damping`: solves with `H + damping I` instead. It makes an indefinite or singular Hessian
      tractable at the price of a bias, which the error estimate contains.
    - `curvature`: `Hessian()`, or `GaussNewton(...)` for networks far from a minimum.
    - `warm_start`: begin each solve at the last adjoint, and let a linear solver that learns from
      solve to solve (`RecyclingCG`) do so.
    - `error_estimate`: `True`, `False` (`info.error` is then NaN and costs nothing), or an
      `ErrorEstimate` with its own options. It costs six loose solves, or the matrix of up to 256
      parameters, and a few gradients of the losses.
    - `unseen`: `"raise"`, or `"none"`: hyperparameters that reach neither loss, or whose gradient
      would be biased (`BilevelProblem.biased`), get the gradient `None`, for another estimator to
      fill in (`Routed`) or a searcher to choose.
    """

    state_type: ClassVar[type] = ImplicitState

    solver: InnerSolver | None
    linear_solver: LinearSolver
    damping: float | Scalar
    curvature: Curvature
    warm_start: bool = eqx.field(static=True)
    error_estimate: ErrorEstimate | None
    unseen: Literal["raise", "none"] = eqx.field(static=True)

    def __init__(
        self,
        solver: Any = None,
        linear_solver: LinearSolver = CG(),  # noqa: B008 (immutable)
        *,
        damping: float | Scalar = 0.0,
        curvature: Curvature = Hessian(),  # noqa: B008 (immutable)
        warm_start: bool = True,
        error_estimate: bool | ErrorEstimate = True,
        unseen: Literal["raise", "none"] = "raise",
    ) -> None:
        name = type(self).__name__
        require_scalar(name, "damping", damping)
        if isinstance(damping, float | int) and damping < 0:
            raise ValueError(f"damping: expected >= 0, received {damping}.")
        require_flag(name, "warm_start", warm_start)
        require(name, "linear_solver", linear_solver, LinearSolver, "CG()")
        require(name, "curvature", curvature, Curvature, "Hessian()")
        if not isinstance(error_estimate, ErrorEstimate):
            require_flag(name, "error_estimate (or an ErrorEstimate)", error_estimate)
        require_choice(name, "unseen", unseen, ("raise", "none"))
        self.unseen = unseen
        self.solver = None if solver is None else as_inner_solver(solver)
        self.linear_solver = linear_solver
        self.damping = damping
        self.curvature = curvature
        self.warm_start = warm_start
        if isinstance(error_estimate, ErrorEstimate):
            self.error_estimate = error_estimate
        else:
            self.error_estimate = ErrorEstimate() if error_estimate else None

    def _init(self, given: RestrictedProblem) -> ImplicitState:
        dynamic = given.w
        if not vector.size(dynamic):
            raise ValueError(
                "params: expected at least one floating-point array with entries, received none."
            )
        _, scale = residual_scale(given.residual, dynamic)
        adjoint = vector.zeros_like(vector.widen(dynamic))
        return ImplicitState(
            params=given.params,
            adjoint=adjoint,
            cotangent_size=jnp.zeros_like(scale),
            linear_state=self.linear_solver.init_state(adjoint) if self.warm_start else None,
            scale=scale,
            solver_state=None
            if self.solver is None
            else self.solver.init(given.problem, given.params),
            inner_iterations=jnp.zeros((), jnp.int32),
        )

    def _fit(self, given: RestrictedProblem, state: ImplicitState) -> tuple[ImplicitState, FitInfo]:
        if self.solver is None:
            residual = vector.norm(given.residual()) / state.scale
            return state, FitInfo(residual, jnp.zeros((), jnp.int32))
        solution = self.solver.run(*given.inner_arguments, state=state.solver_state, key=given.key)
        state = replace(
            state,
            params=solution.params,
            solver_state=solution.state,
            inner_iterations=solution.iterations,
        )
        return state, FitInfo(solution.residual / state.scale, solution.iterations)

    def _hypergradient(self, given: RestrictedProblem, state: ImplicitState) -> Hypergradient:
        given = replace(given, problem=oriented(*given.inner_arguments, given.key))
        traced = given.traced()
        paths = trace_paths(*traced.arguments)
        require_effect(paths, type(self).__name__, unseen=self.unseen == "none")
        dynamic = given.w
        if not same_form(state.adjoint, dynamic):
            expected, received = (jax.tree.map(jnp.shape, t) for t in (state.adjoint, dynamic))
            raise ValueError(
                "The state belongs to params of another structure: expected "
                f"{expected}, received {received}. Make a new state with init."
            )
        here = linearised(traced, self.curvature)
        (value, aux), (cotangent, direct) = jax.value_and_grad(
            traced.outer_loss_and_aux, argnums=(0, 1), has_aux=True
        )(traced.w, traced.h)

        undamped = isinstance(self.damping, float | int) and self.damping == 0
        system = here.system if undamped else here.system.damped(self.damping)
        linear_solver = solver_for(self.linear_solver, symmetric=system.symmetric)
        initial = None
        if self.warm_start:
            initial = state.adjoint
            linear_solver = linear_solver.with_state(state.linear_state)
        # The mixed product is taken in the types of the params: a tiny or huge adjoint would not
        # survive in them.
        unit, size = vector.scaled(cotangent)
        solution = system.solve_adjoint(linear_solver, unit, initial)

        mixed = here.mixed(vector.cast_like(solution.value, dynamic))
        wide = jax.tree.map(lambda d, m: d - size * m, direct, mixed)
        grad = vector.cast_like(wide, direct)

        leaves, structure = jax.tree.flatten(grad)
        wanted = paths.differentiated
        visible = [leaf if w else None for leaf, w in zip(leaves, wanted, strict=True)]
        error = jnp.full((), jnp.nan, solution.residual.dtype)
        error_calls = jnp.zeros((), jnp.int32)
        if self.error_estimate is not None:
            result = Result(cotangent, solution.value, size, solution.products, direct, mixed)
            estimate = self.error_estimate(given, self.curvature, here, result, state.scale)
            # Hyperparameters in half precision lose digits once more.
            lost = vector.norm(vector.sub(wide, vector.widen(grad)))
            cast = jnp.where(lost > 0, lost / vector.norm(grad), 0)
            error = (estimate.error + cast).astype(solution.residual.dtype)
            error_calls = estimate.calls
        outcome = solution.outcome
        if paths.partial:
            error = jnp.full_like(error, jnp.nan)
            outcome = worse(outcome, Outcome.partial)

        finite = vector.all_finite(grad) & jnp.isfinite(value)
        info = HypergradientInfo(
            inner_residual=vector.norm(here.residual) / state.scale,
            inner_iterations=state.inner_iterations,
            linear_residual=solution.residual,
            iterations=solution.products,
            outcome=Outcome.where(finite, outcome, Outcome.not_finite),
            error=error,
            error_calls=error_calls,
        )
        if self.warm_start:
            state = replace(
                state, adjoint=solution.value, cotangent_size=size, linear_state=solution.state
            )
        return Hypergradient(value, jax.tree.unflatten(structure, visible), state, info, aux)
