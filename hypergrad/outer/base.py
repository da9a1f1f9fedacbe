"""What an outer algorithm keeps, and what it reports.

An outer algorithm is an immutable object with two pure functions, `init` and `step`, both of which
work under `jit` and `scan`. `hypergrad.outer.run` drives any of them.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.estimator import HypergradientInfo
from hypergrad.linear import vector
from hypergrad.outer.batches import Batches
from hypergrad.outer.constraints import project
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import BilevelProblem

RUNNING = 0
STATIONARY = 1
ACCURACY_LIMIT = 2
BREAKDOWN = 3
INFEASIBLE = 4

STOPS = {
    STATIONARY: "stationary",
    ACCURACY_LIMIT: "accuracy_limit",
    BREAKDOWN: "breakdown",
    INFEASIBLE: "infeasible",
}


class OuterInfo(eqx.Module):
    """One outer step. Every field is a scalar array; NaN means "not known to this algorithm".

    - `value`: the outer loss at the state's `visited` hyperparameters and its `params`. For the
      single-loop methods: on the step's mini-batch, before their parameters moved.
    - `hypergradient_norm`: Euclidean norm of the hypergradient over all leaves.
    - `stationarity`: `‖λ − P(λ − p)‖` with `p` the hypergradient and `P` the projection; equal to
      `hypergradient_norm` where nothing constrains λ.
    - `error`: estimated relative error of the hypergradient, for the step's data. Of a stochastic
      problem with one key it is not known, unless it is large for another reason.
    - `inner_residual`: `‖∂f/∂w‖`, relative or absolute as the algorithm's page says.
    - `linear_residual`: relative residual of the linear system.
    - `inner_iterations`: inner iterations spent in this step.
    - `calls`: gradient-like evaluations spent in this step: one for each gradient of either loss,
      each Hessian-vector product and each mixed product, those of an error estimate
      (`HypergradientInfo.error_calls`) among them.
    - `step_size`: the outer step size, where the algorithm has one.
    - `tolerance`: the inner accuracy asked for.
    - `accepted`: whether the point was moved.
    - `stop`: 0 to go on; otherwise why the algorithm is finished (`hypergrad.outer.base.STOPS`).
    """

    value: Scalar
    hypergradient_norm: Scalar
    stationarity: Scalar
    error: Scalar
    inner_residual: Scalar
    linear_residual: Scalar
    inner_iterations: Int[Array, ""]
    calls: Int[Array, ""]
    step_size: Scalar
    tolerance: Scalar
    accepted: Bool[Array, ""]
    stop: Int[Array, ""]


def outer_info(
    value: Scalar,
    hypergradient: PyTree,
    hparams: PyTree,
    constraint: PyTree,
    *,
    calls: Array | int,
    error: Array | float = jnp.nan,
    inner_residual: Array | float = jnp.nan,
    linear_residual: Array | float = jnp.nan,
    inner_iterations: Array | int = 0,
    step_size: Array | float = jnp.nan,
    tolerance: Array | float = jnp.nan,
    accepted: Array | bool = True,
    stop: Array | int = RUNNING,
) -> OuterInfo:
    """An `OuterInfo` with the norms filled in, every field in a fixed dtype."""

    def real(x: Array | float) -> Scalar:
        return jnp.asarray(x, value.dtype)

    return OuterInfo(
        value=value,
        hypergradient_norm=real(vector.norm(hypergradient)),
        stationarity=real(stationarity(hparams, hypergradient, constraint)),
        error=real(error),
        inner_residual=real(inner_residual),
        linear_residual=real(linear_residual),
        inner_iterations=jnp.asarray(inner_iterations, jnp.int32),
        calls=jnp.asarray(calls, jnp.int32),
        step_size=real(step_size),
        tolerance=real(tolerance),
        accepted=jnp.asarray(accepted),
        stop=jnp.asarray(stop, jnp.int32),
    )


class OuterState(eqx.Module):
    """What every algorithm's state holds; the algorithms add their own.

    - `step`: outer steps taken.
    - `hparams`: where the next step evaluates.
    - `visited`: hyperparameters to which `params` belong.
    - `params`: the inner parameters.
    - `hypergradient`: the last hypergradient, a pytree like the differentiable part of `hparams`.
    """

    step: Int[Array, ""]
    hparams: PyTree
    visited: PyTree
    params: PyTree
    hypergradient: PyTree


State = TypeVar("State", bound=OuterState)


def first_state(kind: type[State], params: PyTree, hparams: PyTree, **own: Any) -> State:
    """The state before the first step, with what a `kind` of state has of its `own`."""
    return kind(
        step=jnp.zeros((), jnp.int32),
        hparams=hparams,
        visited=hparams,
        params=params,
        hypergradient=vector.zeros_like(differentiable(hparams)),
        **own,
    )


def step_on(state: State, new: State, good: Array) -> State:
    """`new`, or `state` where it is not good: counted as a step either way."""
    return replace(vector.where(good, new, state), step=state.step + 1)


class OuterAlgorithm(eqx.Module):
    """Moves the hyperparameters. Immutable; everything that changes is in the state."""

    @property
    @abstractmethod
    def constraint(self) -> PyTree:
        """Feasible set of the hyperparameters; see `hypergrad.outer.project`."""

    @abstractmethod
    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> OuterState:
        """The state before the first step.

        **Arguments:**

        - `problem`: the two losses.
        - `params`: where the inner problem starts, any pytree.
        - `hparams`: where the outer problem starts, any pytree.
        - `batches`: data of the first step.
        - `key`: for stochastic problems.
        """

    @abstractmethod
    def step(
        self,
        problem: BilevelProblem,
        state: Any,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[OuterState, OuterInfo]:
        """One outer step on the given data.

        **Arguments:**

        - `problem`: the two losses.
        - `state`: from `init` or from the last step.
        - `batches`: data of this step.
        - `key`: for stochastic problems; a new one for each step.
        """


def check_reach(
    algorithm: OuterAlgorithm,
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    batches: Batches,
    key: Array | None,
) -> None:
    """Refuse hyperparameters that no implicit derivative can see; costs a trace, no computation.

    **Raises:** `ValueError` naming the hyperparameter, or saying that the outer loss does not
    depend on `params`.
    """
    paths = trace_paths(problem, params, hparams, batches.linear, batches.outer, key)
    require_effect(paths, type(algorithm).__name__)


def known_error(info: HypergradientInfo) -> Scalar:
    """The estimated relative error; infinite where its solve alone shows that nothing is known."""
    unsolved = info.nonpositive_curvature | (info.linear_residual >= 1)
    failed = info.breakdown | (unsolved & jnp.isnan(info.error))
    return jnp.where(failed, jnp.inf, info.error)


def differentiable(tree: PyTree) -> PyTree:
    """The leaves that are differentiated, `None` elsewhere."""
    return eqx.filter(tree, eqx.is_inexact_array)


def move(hparams: PyTree, update: PyTree, constraint: PyTree) -> PyTree:
    """`P(hparams + update)`; leaves without an update stay."""
    return project(constraint, eqx.apply_updates(hparams, update))


def optimizer_step(
    optimizer: optax.GradientTransformation,
    optimizer_state: PyTree,
    hparams: PyTree,
    hypergradient: PyTree,
    constraint: PyTree,
) -> tuple[PyTree, PyTree, Array]:
    """One projected step of an optax optimizer, and whether it was finite.

    A step that is not finite is not taken, nor remembered by the optimizer.
    """
    point = differentiable(hparams)
    update, new_state = optimizer.update(hypergradient, optimizer_state, point)
    good = vector.all_finite(update)
    update = jax.tree.map(lambda u: jnp.where(good, u, 0), update)
    return (
        vector.where(good, move(hparams, update, constraint), hparams),
        vector.where(good, new_state, optimizer_state),
        good,
    )


def may_move(hparams: PyTree, hypergradient: PyTree, constraint: PyTree) -> PyTree:
    """For each entry, whether descent moves it: not if a bound holds it, or without a slope.

    For sets that hold entry by entry.
    """
    # By steps that rounding does not take back, however small the hypergradient is.
    step = jax.tree.map(
        lambda p, x: (-jnp.sign(p) * (1 + jnp.abs(x))).astype(p.dtype),
        hypergradient,
        differentiable(hparams),
    )
    moved = move(hparams, step, constraint)
    return jax.tree.map(jnp.not_equal, differentiable(moved), differentiable(hparams))


def stationarity(hparams: PyTree, hypergradient: PyTree, constraint: PyTree) -> Scalar:
    """`‖λ − P(λ − p)‖`, which is zero exactly at the constrained stationary points."""
    moved = move(hparams, jax.tree.map(jnp.negative, hypergradient), constraint)
    return vector.norm(vector.sub(differentiable(hparams), differentiable(moved)))
