"""What an outer algorithm is given, what it keeps, and what it reports.

An outer algorithm is an immutable object with two pure functions, `init` and `step`, both of which
work under `jit` and `scan`. `hypergrad.outer.run` drives any of them.
"""

import math
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
from hypergrad.outer.constraints import project
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem

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


class Batches(eqx.Module):
    """The data of one outer step, by the part of it that they enter.

    `Batches(inner_data, outer_data)` uses all of both everywhere. The samplers
    (`hypergrad.outer.Minibatches`) fill in the rows.

    **Arguments:**

    - `inner_data`: the training data, any pytree; its array leaves share their first axis if rows
      are given.
    - `outer_data`: the validation data, likewise.
    - `inner_rows`: row numbers, shape `(fits, size)`: one mini-batch for each inner fit of the
      step. `None`: all rows.
    - `linear_rows`: row numbers, shape `(size,)`, for the linear system and the mixed product.
    - `outer_rows`: row numbers, shape `(outer_size,)`, for the outer loss.
    - `inner_number`, `outer_number`: which block of a fixed partition of the data the (first) inner
      and the outer mini-batch are; methods with one memory slot per block need them.
    - `inner_count`, `outer_count`: how many blocks there are; 0 if the mini-batches are not blocks
      of a fixed partition.
    """

    inner_data: PyTree
    outer_data: PyTree
    inner_rows: Int[Array, "fits size"] | None = None
    linear_rows: Int[Array, " size"] | None = None
    outer_rows: Int[Array, " outer_size"] | None = None
    inner_number: Int[Array, ""] | int = 0
    outer_number: Int[Array, ""] | int = 0
    inner_count: int = eqx.field(static=True, default=1)
    outer_count: int = eqx.field(static=True, default=1)

    def inner(self, fit: Int[Array, ""] | int = 0) -> PyTree:
        """The batch of inner fit number `fit` of this step."""
        if self.inner_rows is None:
            return self.inner_data
        return _rows(self.inner_data, self.inner_rows[fit % self.inner_rows.shape[0]])

    @property
    def linear(self) -> PyTree:
        """The batch of the linear system and of the mixed product."""
        return _rows(self.inner_data, self.linear_rows)

    @property
    def outer(self) -> PyTree:
        """The batch of the outer loss."""
        return _rows(self.outer_data, self.outer_rows)

    @property
    def everything(self) -> "Batches":
        """All of both data in every part of the step."""
        return Batches(self.inner_data, self.outer_data)

    @property
    def passes(self) -> tuple[int, int]:
        """How many inner and outer mini-batches all of the data make, rounded up."""
        return (
            _batches(self.inner_data, self.linear_rows),
            _batches(self.outer_data, self.outer_rows),
        )

    def restrict(
        self, problem: BilevelProblem, params: PyTree, hparams: PyTree, key: Array | None
    ) -> RestrictedProblem:
        """The problem at a point, on the batches of the linear system and of the outer loss."""
        return RestrictedProblem(problem, params, hparams, self.linear, self.outer, key)


def _batches(data: PyTree, rows: Array | None) -> int:
    if rows is None:
        return 1
    total = next(x.shape[0] for x in jax.tree.leaves(data) if hasattr(x, "shape"))
    return math.ceil(total / rows.size)


def _rows(data: PyTree, rows: Array | None) -> PyTree:
    if rows is None:
        return data
    return jax.tree.map(lambda x: _take(x, rows) if hasattr(x, "shape") else x, data)


def _take(x: Array, rows: Array) -> Array:
    """`x[rows]`; on a mesh with explicit axes sharded as `x`, where the rows can be dealt out."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.mesh.explicit_axes):
        return x[rows]
    first, *rest = sharding.spec
    axes = (first,) if isinstance(first, str) else first or ()
    devices = math.prod(sharding.mesh.shape[axis] for axis in axes)
    spec = jax.sharding.PartitionSpec(first if rows.size % devices == 0 else None, *rest)
    return x.at[rows].get(out_sharding=jax.sharding.NamedSharding(sharding.mesh, spec))


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
        hypergradient=jax.tree.map(jnp.zeros_like, differentiable(hparams)),
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
