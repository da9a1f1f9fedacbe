"""Inner solvers: whatever moves `params` towards `argmin inner(params, hparams, batch)`.

One protocol over optax optimizers, jaxopt solvers, plain functions, and a Newton method of our own
for when the inner problem must be solved to rounding error.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.adjoint import jacobian_operator, solver_for
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.linear.gmres import GMRES
from hypergrad.linear.pcg import PCG
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_of


class InnerSolution(eqx.Module):
    """Where an inner solver stopped.

    - `params`: the inner point, same structure as given.
    - `state`: the solver's own state, to be handed to the next `run` (momenta, step sizes).
    - `iterations`: iterations spent; a plain function counts as one.
    - `residual`: the absolute norm `‖∂f/∂w‖` that the solver measured last.
    """

    params: PyTree
    state: PyTree
    iterations: Int[Array, ""]
    residual: Scalar


class InnerSolver(eqx.Module):
    """Anything that improves the inner parameters at fixed hyperparameters."""

    @abstractmethod
    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """Continue from `params` (and `state`, if it was returned by an earlier run).

        **Arguments:**

        - `problem`: supplies the inner loss or the optimality map.
        - `params`: where to start, any pytree; leaves that are not inexact arrays are carried.
        - `hparams`: the hyperparameters, held fixed.
        - `batch`: the inner data, handed to the inner loss as it is.
        - `state`: state of an earlier run, or `None` to start afresh.
        - `key`: for stochastic problems.
        """

    def init(self, problem: BilevelProblem, params: PyTree) -> PyTree:
        """The state that `run` starts from when it is given none; `None` if it keeps none."""
        return None


class OptaxSolver(InnerSolver):
    """Steps of an optax optimizer on one batch.

    **Arguments:**

    - `optimizer`: any `optax.GradientTransformation`, line searches (`optax.lbfgs()`) included.
      Its momenta are kept from one run to the next.
    - `steps`: at most so many steps per run. A traced integer is allowed.
    - `tol`: stop as soon as `‖∂f/∂w‖ <= tol` (Euclidean norm over all leaves, absolute). The
      default 0 takes all steps.
    - `fresh_noise`: a stochastic problem gets a new key at each step, as training usually does.
      `False` keeps the one key of the run, so that the inner problem is a fixed
      (sample-average) function whose stationary point exists.

    The residual reported is measured at the returned point when `tol` stopped the run, else one
    step before it (so that a run of one step costs one gradient and not two).
    """

    optimizer: optax.GradientTransformation
    steps: int | Int[Array, ""] = 1000
    tol: float | Scalar = 0.0
    fresh_noise: bool = eqx.field(static=True, default=True)

    def init(self, problem: BilevelProblem, params: PyTree) -> PyTree:
        """The optimizer's initial state."""
        return self.optimizer.init(eqx.filter(params, eqx.is_inexact_array))

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)
        optimizer = optax.with_extra_args_support(self.optimizer)
        if state is None:
            state = optimizer.init(dynamic)

        def step_key(step: Array) -> Array | None:
            if key is None or not (problem.stochastic and self.fresh_noise):
                return key
            return jax.random.fold_in(key, step)

        def descent(point: PyTree, key: Array | None) -> tuple[Scalar, PyTree]:
            if problem.inner is None:
                residual = problem.residual(eqx.combine(point, static), hparams, batch, key)
                return vector.norm(residual), residual

            def loss(p: PyTree) -> Scalar:
                return problem.inner_loss(eqx.combine(p, static), hparams, batch, key)[0]

            return jax.value_and_grad(loss)(point)

        def unfinished(carry: tuple) -> Array:
            _, _, step, residual = carry
            return (step < self.steps) & ~(residual <= self.tol)

        def body(carry: tuple) -> tuple:
            point, opt_state, step, _ = carry
            key = step_key(step)
            value, gradient = descent(point, key)
            residual = vector.norm(gradient)
            updates, new_state = optimizer.update(
                gradient,
                opt_state,
                point,
                value=value,
                grad=gradient,
                value_fn=lambda p: descent(p, key)[0],
            )
            done = residual <= self.tol
            point = vector.where(done, point, optax.apply_updates(point, updates))
            opt_state = vector.where(done, opt_state, new_state)
            return point, opt_state, step + jnp.where(done, 0, 1), residual

        dtype = vector.norm(dynamic).dtype
        start = (dynamic, state, jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, dtype))
        point, state, iterations, residual = jax.lax.while_loop(unfinished, body, start)
        return InnerSolution(eqx.combine(point, static), state, iterations, residual)


class JaxoptSolver(InnerSolver):
    """A jaxopt solver object, built by the user over the same inner loss as the problem.

    **Arguments:**

    - `solver`: e.g. `jaxopt.LBFGS(fun=inner)` with `inner(params, hparams, batch)`.
    - `arguments`: `arguments(hparams, batch) -> tuple`, what `solver.run` gets after the initial
      point. The default passes `(hparams, batch)`; a projected or proximal solver may want
      `(hyperparams_prox, hparams, batch)`.

    The residual is that of the problem at the returned point, not jaxopt's own error.
    """

    solver: Any
    arguments: Callable[[PyTree, PyTree], tuple] | None = None

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        if self.arguments is None:
            arguments: tuple = (hparams, batch)
        else:
            arguments = self.arguments(hparams, batch)
        if problem.stochastic:
            arguments = (*arguments, key)
        params, info = self.solver.run(params, *arguments)
        residual = vector.norm(problem.residual(params, hparams, batch, key))
        iterations = jnp.asarray(getattr(info, "iter_num", 1), jnp.int32)
        return InnerSolution(params, None, iterations, residual)


class FunctionSolver(InnerSolver):
    """Any function `fn(params, hparams, batch) -> params`; a call counts as one iteration.

    For a stochastic problem it gets a fourth argument `key`.
    """

    fn: Callable

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        extra = (key,) if problem.stochastic else ()
        solved = self.fn(params, hparams, batch, *extra)
        expected = jax.tree.map(jnp.shape, eqx.filter(params, eqx.is_array))
        received = jax.tree.map(jnp.shape, eqx.filter(solved, eqx.is_array))
        if expected != received:
            raise ValueError(
                "The inner solver function must return params of the structure and shapes it was "
                f"given: expected {expected}, got {received}."
            )
        residual = vector.norm(problem.residual(solved, hparams, batch, key))
        return InnerSolution(solved, None, jnp.ones((), jnp.int32), residual)


class Newton(InnerSolver):
    """Newton's method with inner CG products and a backtracking line search.

    For smooth inner problems that must be solved to rounding error: convex models, the reference
    solves of `check_hypergradient`. Each step solves `H e = ∂f/∂w` by CG to a relative residual
    of `min(0.1, sqrt(‖∂f/∂w‖ / ‖∂f/∂w at the start‖))` (inexact Newton, superlinear; Nocedal &
    Wright, *Numerical Optimization*, section 7.1) and halves the step until the loss decreases.
    After a direction of non-positive curvature it solves with `H + shift I`, and lets the shift die
    away once the curvature is positive again.

    With an optimality map it solves `J e = r` and decreases `‖r‖`: a semismooth Newton method for
    the fixed points of proximal and projected steps (Qi & Sun 1993).

    **Arguments:**

    - `tol`: stop at `‖∂f/∂w‖ <= tol` (absolute), or when rounding error lets nothing decrease any
      more.
    - `max_steps`: Newton steps per run.
    - `linear_solver`: solves for the step. The `tol` of a `CG`, `PCG` or `GMRES` is replaced
      step by step.
    """

    tol: float | Scalar = 0.0
    max_steps: int | Int[Array, ""] = 100
    linear_solver: LinearSolver = CG(max_steps=1000)

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)
        symmetric = problem.optimality is None
        residual_at = residual_of(problem, static, hparams, batch, key)

        def measure(point: PyTree) -> tuple[Scalar, PyTree]:
            if symmetric:
                return jax.value_and_grad(
                    lambda p: problem.inner_loss(eqx.combine(p, static), hparams, batch, key)[0]
                )(point)
            residual = residual_at(point)
            return 0.5 * vector.vdot(residual, residual), residual

        def unfinished(carry: tuple) -> Array:
            _, _, _, norm, _, _, step, stuck = carry
            return (step < self.max_steps) & (norm > self.tol) & ~stuck

        def body(carry: tuple) -> tuple:
            point, value, gradient, norm, first, shift, step, _ = carry
            _, product = jax.linearize(residual_at, point)
            solver = solver_for(self.linear_solver, symmetric=symmetric)
            if isinstance(solver, CG | PCG | GMRES):
                forcing = jnp.minimum(0.1, jnp.sqrt(norm / first))
                # The last step need not be better than what is asked for.
                forcing = jnp.maximum(forcing, 0.5 * jnp.minimum(self.tol / norm, 1))
                solver = eqx.tree_at(lambda s: s.tol, solver, forcing)
            unit = vector.scale(1 / norm, gradient)
            operator = jacobian_operator(product, point, symmetric=symmetric).damped(shift)
            solution = solver.solve(operator, vector.widen(unit))
            indefinite = solution.nonpositive_curvature
            larger = jnp.maximum(4 * shift, 2 * jnp.abs(solution.curvature_min))
            smaller = jnp.where(shift > 1e-3 * solution.curvature_max, shift / 4, 0)
            shift = jnp.where(indefinite, larger, smaller).astype(norm.dtype)
            direction = vector.cast_like(vector.scale(norm, solution.value), point)
            # Half the squared residual falls along its own Newton step with slope -‖r‖².
            slope = vector.vdot(gradient, direction) if symmetric else norm**2
            newton = (slope > 0) & vector.all_finite(direction)
            direction = vector.where(newton, direction, gradient)
            slope = jnp.where(newton, slope, norm**2)
            rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)

            def try_step(search: tuple) -> tuple:
                size, halvings, *_ = search
                candidate = vector.axpy(-size, direction, point)
                new_value, new_gradient = measure(candidate)
                new_norm = vector.norm(new_gradient)
                # Near the solution the loss differences drown in rounding: there the gradient
                # decides.
                lower = new_value <= value - 1e-4 * size * slope
                flatter = (new_value <= value + rounding) & (new_norm < norm)
                good = (lower | flatter) & jnp.isfinite(new_norm)
                return size / 2, halvings + 1, good, candidate, new_value, new_gradient, new_norm

            start = (
                jnp.ones((), norm.dtype),
                jnp.zeros((), jnp.int32),
                jnp.asarray(False),
                point,
                value,
                gradient,
                norm,
            )
            _, _, good, candidate, new_value, new_gradient, new_norm = jax.lax.while_loop(
                lambda s: (s[1] < 40) & ~s[2], try_step, start
            )
            stuck = ~indefinite & (~good | ((new_norm >= norm) & (new_value >= value)))
            point = vector.where(good, candidate, point)
            gradient = vector.where(good, new_gradient, gradient)
            value = jnp.where(good, new_value, value)
            norm = jnp.where(good, new_norm, norm)
            return point, value, gradient, norm, first, shift, step + 1, stuck

        value, gradient = measure(dynamic)
        norm = vector.norm(gradient)
        shift, steps = jnp.zeros_like(norm), jnp.zeros((), jnp.int32)
        start = (dynamic, value, gradient, norm, norm, shift, steps, ~jnp.isfinite(norm))
        point, _, _, norm, _, _, steps, _ = jax.lax.while_loop(unfinished, body, start)
        return InnerSolution(eqx.combine(point, static), None, steps, norm)


def as_inner_solver(solver: Any) -> InnerSolver:
    """An `InnerSolver` from whatever the user has.

    **Arguments:**

    - `solver`: an `InnerSolver` (returned as it is), an optax optimizer (`OptaxSolver` with its
      default number of steps), a jaxopt solver object, or a plain function
      `fn(params, hparams, batch) -> params`.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(solver, InnerSolver):
        return solver
    if isinstance(solver, optax.GradientTransformation):
        return OptaxSolver(solver)
    # Recognised by name: importing jaxopt only to ask would warn users who do not use it.
    if type(solver).__module__.split(".")[0] == "jaxopt":
        return JaxoptSolver(solver)
    if callable(solver):
        return FunctionSolver(solver)
    raise ValueError(
        "An inner solver is an InnerSolver, an optax optimizer, a jaxopt solver or a function "
        f"fn(params, hparams, batch) -> params; got {type(solver).__name__}."
    )
