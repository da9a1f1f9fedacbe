"""What the unrolled estimators have in common: the run, its start, its state, its bad input."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.expected import require_choice
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.paths import leaf_names, require_differentiable
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_scale
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.run import Dynamics, is_array
from hypergrad.unrolled.steps import InnerStep, as_inner_step


class UnrolledState(eqx.Module):
    """What the unrolled estimators carry from call to call.

    - `params`: where the last run ended; before the first run, the point given to `init`.
    - `start`: where the next `hypergradient` starts its run.
    - `step_state`, `start_step_state`: the inner step's own state (momenta) at these two points;
      `None` for a cold start, which makes a new one for each run.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `inner_iterations`: steps taken by the last run.
    """

    params: PyTree
    start: PyTree
    step_state: PyTree
    start_step_state: PyTree
    scale: Scalar
    inner_iterations: Int[Array, ""]


class UnrolledEstimator(Estimator):
    """The base of the estimators that differentiate the steps which were run.

    **Arguments:**

    - `update`: the inner step. A function `hparams -> optax optimizer` (any hyperparameter used
      inside is differentiated), an optax optimizer, or an `InnerStep` such as `StepFunction`.
    - `steps`: length `T` of a run, a positive Python integer. It has no derivative.
    - `initial`: `initial(params, hparams) -> params`, where a run starts, for learned
      initialisations; `params` are those given to `init`. By default these params themselves.
    - `stacked`: the inner batch holds one batch per step, stacked along a leading axis of length
      `steps`. By default the same batch serves all steps.
    - `warm_start`: each `fit` continues from where the last one ended, with the momenta that it had
      then, and the derivative takes this start as constant. By default (cold start) every run
      starts from the params given to `init` with a new optimizer state.
    - `unseen`: `"raise"`, or `"none"`: hyperparameters without a derivative, or whose gradient
      would be biased (`BilevelProblem.biased`), get the gradient `None`.

    A stochastic problem, or step, gets the key `fold_in(key, t)` at step `t`; the outer loss gets
    `key` itself.
    """

    state_type: ClassVar[type] = UnrolledState
    update: InnerStep
    steps: int = eqx.field(static=True)
    initial: Callable | None
    stacked: bool = eqx.field(static=True)
    warm_start: bool = eqx.field(static=True)
    unseen: Literal["raise", "none"] = eqx.field(static=True)

    def __init__(
        self,
        update: Any,
        steps: int,
        *,
        initial: Callable | None = None,
        stacked: bool = False,
        warm_start: bool = False,
        unseen: Literal["raise", "none"] = "raise",
    ) -> None:
        require_choice(type(self).__name__, "unseen", unseen, ("raise", "none"))
        self.unseen = unseen
        self.steps = positive_int("steps", steps)
        if warm_start and initial is not None:
            raise ValueError(
                "A warm start continues from the last run: it excludes `initial`; expected one of "
                "the two."
            )
        self.update = as_inner_step(update)
        self.initial = initial
        self.stacked = stacked
        self.warm_start = warm_start

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Any:
        """The `UnrolledState` at `params`, from which runs start; nothing is run yet.

        Costs one inner gradient and one product, for the scale of the residual.
        """
        self._check(params, hparams, inner_batch)
        step_state = self.update.init(params, hparams) if self.warm_start else None
        return UnrolledState(
            params=params,
            start=params,
            step_state=step_state,
            start_step_state=step_state,
            scale=self._scale(problem, params, hparams, inner_batch, key),
            inner_iterations=jnp.zeros((), jnp.int32),
        )

    def fit(
        self,
        problem: BilevelProblem,
        state: Any,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[Any, FitInfo]:
        """Run the steps: from the state's start, or, with `warm_start`, from its `params`.

        `hypergradient` runs them itself, so that a cold start has no need of `fit`; with a warm
        start it is `fit` that moves the start on.
        """
        if self.warm_start:
            state = eqx.tree_at(
                lambda s: (s.start, s.start_step_state),
                state,
                (state.params, state.step_state),
                is_leaf=lambda leaf: leaf is None,
            )
        run = self._dynamics(problem, state, hparams, inner_batch, key)
        x, rest = run.advance(run.x, run.rest, run.h, 0, self.steps)
        state = self._moved(state, run, x, rest)
        return state, FitInfo(
            self._residual(problem, state, hparams, inner_batch, key), state.inner_iterations
        )

    @abstractmethod
    def hypergradient(
        self,
        problem: BilevelProblem,
        state: Any,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """Run the steps from the state's start, and differentiate the outer loss at their end.

        The state returned holds the end of that run in `params`; its start is unchanged.
        """

    def _check(self, params: PyTree, hparams: PyTree, inner_batch: PyTree) -> None:
        for name, leaf in zip(leaf_names(hparams), jax.tree.leaves(hparams), strict=True):
            dtype = jnp.result_type(leaf) if eqx.is_array_like(leaf) else None
            if dtype is not None and jnp.issubdtype(dtype, jnp.integer):
                raise ValueError(
                    f"Hyperparameter {name!r} is an integer ({leaf!r}): a number of steps, a batch "
                    "size or a width has no derivative. Expected floating-point arrays; leave it "
                    "out of hparams, or to a searcher."
                )
        if not jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array)):
            raise ValueError("params: expected at least one floating-point array, received none.")
        require_differentiable(jax.tree.leaves(eqx.filter(hparams, eqx.is_inexact_array)))
        if not self.stacked:
            return
        for path, leaf in jax.tree_util.tree_leaves_with_path(inner_batch):
            if is_array(leaf) and (leaf.ndim == 0 or leaf.shape[0] != self.steps):
                name = jax.tree_util.keystr(path, simple=True, separator="/") or "inner_batch"
                raise ValueError(
                    f"Stacked inner batch, leaf {name!r}: expected a leading axis of length "
                    f"{self.steps} (steps), received shape {leaf.shape}."
                )

    def _start(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        """Params and step state at the start of a run with these hyperparameters."""
        at = self._initial(params, hparams)
        return at, self.update.init(at, hparams)

    def _initial(self, params: PyTree, hparams: PyTree) -> PyTree:
        if self.initial is None:
            return params
        start = self.initial(params, hparams)
        if _shapes(start) != _shapes(params):
            raise ValueError(
                "`initial` must return a pytree like params: expected "
                f"{_shapes(params)}, received {_shapes(start)}."
            )
        return start

    def _batch_at(self, inner_batch: PyTree, t: int) -> PyTree:
        if not self.stacked:
            return inner_batch
        return jax.tree.map(lambda a: a[t] if is_array(a) else a, inner_batch)

    def _dynamics(
        self,
        problem: BilevelProblem,
        state: UnrolledState,
        hparams: PyTree,
        inner_batch: PyTree,
        key: Array | None,
    ) -> Dynamics:
        if not self.warm_start:
            return self._begun(problem, state.start, hparams, inner_batch, key)
        at = state.start, state.start_step_state
        return self._continued(problem, at, hparams, inner_batch, key)

    def _begun(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        key: Array | None,
    ) -> Dynamics:
        """The run from `params`, whose start depends on the hyperparameters."""
        self._check(params, hparams, inner_batch)

        def start(hparams: PyTree) -> tuple[PyTree, PyTree]:
            return self._start(params, hparams)

        return Dynamics(self.update, problem, start, hparams, inner_batch, key, self.stacked)

    def _continued(
        self,
        problem: BilevelProblem,
        at: tuple[PyTree, PyTree],
        hparams: PyTree,
        inner_batch: PyTree,
        key: Array | None,
    ) -> Dynamics:
        """The run from params and a step state, both constant."""
        self._check(at[0], hparams, inner_batch)
        return Dynamics(self.update, problem, lambda _: at, hparams, inner_batch, key, self.stacked)

    def _moved(self, state: UnrolledState, run: Dynamics, x: PyTree, rest: PyTree) -> UnrolledState:
        params, step_state = run.unpack(x, rest)
        return UnrolledState(
            params=params,
            start=state.start,
            step_state=step_state if self.warm_start else None,
            start_step_state=state.start_step_state,
            scale=state.scale,
            inner_iterations=jnp.asarray(self.steps, jnp.int32),
        )

    def _scale(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        key: Array | None,
    ) -> Scalar:
        """What residuals are relative to."""
        batch = self._batch_at(inner_batch, 0)
        given = RestrictedProblem(problem, params, hparams, batch, key=key)
        return residual_scale(given.residual, given.w)[1]

    def _residual(
        self,
        problem: BilevelProblem,
        state: Any,
        hparams: PyTree,
        inner_batch: PyTree,
        key: Array | None,
    ) -> Scalar:
        batch = self._batch_at(inner_batch, self.steps - 1)
        residual = problem.residual(state.params, hparams, batch, key)
        return vector.norm(eqx.filter(residual, eqx.is_inexact_array)) / state.scale


def finish(
    value: Scalar,
    aux: PyTree,
    grad: PyTree,
    run: Dynamics,
    state: Any,
    *,
    residual: Scalar,
    inner_iterations: Array,
    differentiated: Array,
    breakdown: Array,
    error: Scalar,
) -> Hypergradient:
    """A `Hypergradient` in the user's dtypes, with what unrolling does not have left unknown."""
    grad = vector.cast_like(grad, run.like(grad))
    breakdown = breakdown | ~jnp.isfinite(value) | ~vector.all_finite(grad)
    grad = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0), grad)
    error = jnp.where(breakdown, jnp.inf, jnp.nan if run.partial else error)
    info = HypergradientInfo(
        inner_residual=residual,
        inner_iterations=inner_iterations,
        linear_residual=jnp.full((), jnp.nan, residual.dtype),
        iterations=differentiated,
        outcome=Outcome.where(breakdown, Outcome.not_finite, Outcome.solved),
        error=error,
    )
    return Hypergradient(value, grad, state, info, aux)


def positive_int(name: str, value: Any) -> int:
    """`value`, if it is a positive Python integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(
            f"{name}: expected a positive Python integer, received {value!r}. It fixes the "
            "program, so it "
            "can be neither traced nor differentiated."
        )
    return int(value)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.shape, eqx.filter(tree, eqx.is_inexact_array))
