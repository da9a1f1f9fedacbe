"""Steps of an optax optimizer."""

from dataclasses import replace
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.inner.base import InnerSolution, InnerSolver
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.stateful import Stateful


class OptaxSolver(InnerSolver):
    """Steps of an optax optimizer on one batch.

    **Arguments:**

    - `optimizer`: any `optax.GradientTransformation`, line searches (`optax.lbfgs()`) and those
      that want the loss (`momo`) or find their own rate (`prodigy`, `dadapt_adamw`) included. Its
      state is kept from one run to the next. `schedule_free` trains at one point and answers with
      another, an average: that average is the inner solution, and the residual reported is measured
      there.
    - `steps`: at most so many steps per run. A traced integer is allowed.
    - `tol`: stop as soon as `‖∂f/∂w‖ <= tol` (Euclidean norm over all leaves, absolute). The
      default 0 takes all steps.
    - `fresh_noise`: a stochastic problem gets a new key at each step, as training usually does.
      `False` keeps the one key of the run, so that the inner problem is a fixed
      (sample-average) function whose stationary point exists.

    The residual reported is measured at the returned point when `tol` stopped the run, else one
    step before it (so that a run of one step costs one gradient and not two).

    Of a `Stateful` problem each step moves the weights, and takes the state that the loss returns.
    """

    optimizer: optax.GradientTransformation
    steps: int | Int[Array, ""] = 1000
    tol: float | Scalar = 0.0
    fresh_noise: bool = eqx.field(static=True, default=True)

    def with_tol(self, tol: float | Scalar) -> Self:
        """See `hypergrad.tolerance.HasTolerance`."""
        return eqx.tree_at(lambda s: s.tol, self, tol)

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
        given = RestrictedProblem(problem, params, hparams, batch, key=key)
        dynamic = given.w
        optimizer = optax.with_extra_args_support(self.optimizer)
        if state is None:
            state = optimizer.init(dynamic)

        def step_key(step: Array) -> Array | None:
            if key is None or not (problem.stochastic and self.fresh_noise):
                return key
            return jax.random.fold_in(key, step)

        renews = isinstance(problem.optimality, Stateful)
        rest = eqx.filter(params, _is_counter) if renews else None

        def at(point: PyTree, rest: PyTree) -> PyTree:
            return eqx.combine(rest, given.params_at(point)) if renews else given.params_at(point)

        def descent(
            point: PyTree, rest: PyTree, key: Array | None
        ) -> tuple[Scalar, PyTree, Scalar, PyTree]:
            """Value, gradient, norm of the residual, and the next state (`None` without one)."""
            here = replace(given, params=at(point, rest), key=key)
            if isinstance(problem.optimality, Stateful):
                value, gradient, moved = problem.optimality.evaluated(
                    here.params, hparams, batch, *here.extra
                )
                change = vector.sub(point[1], eqx.filter(moved, eqx.is_inexact_array))
                return value, gradient, vector.norm((gradient[0], change)), moved
            if problem.inner is None:
                residual = here.residual(point)
                return vector.norm(residual), residual, vector.norm(residual), None
            value, gradient = jax.value_and_grad(here.inner_loss)(point)
            return value, gradient, vector.norm(gradient), None

        def unfinished(carry: tuple) -> Array:
            _, _, _, step, residual = carry
            return (step < self.steps) & ~(residual <= self.tol)

        def body(carry: tuple) -> tuple:
            point, rest, opt_state, step, _ = carry
            key = step_key(step)
            value, gradient, residual, moved = descent(point, rest, key)
            updates, new_state = optimizer.update(
                gradient,
                opt_state,
                point,
                value=value,
                grad=gradient,
                value_fn=lambda p: descent(p, rest, key)[0],
            )
            new_point = optax.apply_updates(point, updates)
            done = residual <= self.tol
            if renews:
                new_point = (new_point[0], eqx.filter(moved, eqx.is_inexact_array))
                rest = vector.where(done, rest, (rest[0], eqx.filter(moved, _is_counter)))
            point = vector.where(done, point, new_point)
            opt_state = vector.where(done, opt_state, new_state)
            return point, rest, opt_state, step + jnp.where(done, 0, 1), residual

        average = _schedule_free(state)
        if average is not None:
            # What was handed on is the average x; training goes on at y, between it and z.
            share = average.b1
            dynamic = jax.tree.map(lambda x, z: share * x + (1.0 - share) * z, dynamic, average.z)
        dtype = vector.norm(dynamic).dtype
        start = (dynamic, rest, state, jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, dtype))
        point, rest, state, iterations, residual = jax.lax.while_loop(unfinished, body, start)
        average = _schedule_free(state)
        if average is not None:
            point = optax.contrib.schedule_free_eval_params(average, point)
            residual = descent(point, rest, step_key(iterations))[2]
        return InnerSolution(at(point, rest), state, iterations, residual)


def _is_counter(leaf: Any) -> bool:
    """An array that is carried and not differentiated."""
    return eqx.is_array(leaf) and not eqx.is_inexact_array(leaf)


def _schedule_free(state: PyTree) -> optax.contrib.ScheduleFreeState | None:
    """The part of an optimizer's state that has an average, if there is one."""
    kind = optax.contrib.ScheduleFreeState
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind))
    return next((part for part in parts if isinstance(part, kind)), None)
