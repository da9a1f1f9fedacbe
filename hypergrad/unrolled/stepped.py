"""What all estimators that take inner steps have in common: the steps, bad input, the result."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import Hypergradient, HypergradientInfo
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.paths import leaf_names, require_differentiable
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_scale
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator
from hypergrad.unrolled.run import Dynamics, is_array
from hypergrad.unrolled.steps import InnerStep, as_inner_step


class Differentiated(NamedTuple):
    """The outer loss at the end of a run, and its derivative.

    - `run`: with the hyperparameters that are differentiated.
    - `value`, `aux`: of the outer loss.
    - `grad`: like the run's hyperparameters.
    - `steps`: how many of them were differentiated.
    - `error`: the relative error, as far as it is known.
    - `intact`: everything met was finite.
    """

    run: Dynamics
    value: Scalar
    aux: PyTree
    grad: PyTree
    steps: Int[Array, ""]
    error: Scalar
    intact: Array | bool = True


class SteppedEstimator(RestrictedEstimator):
    """The base of the estimators that take inner steps.

    A run begins at the `params` of the `RestrictedProblem` that it is made from.

    **Arguments:** see `UnrolledEstimator`.
    """

    update: InnerStep
    steps: int = eqx.field(static=True)
    initial: Callable | None
    stacked: bool = eqx.field(static=True)

    def __init__(
        self, update: Any, steps: int, *, initial: Callable | None = None, stacked: bool = False
    ) -> None:
        self.steps = positive_int("steps", steps)
        self.update = as_inner_step(update)
        self.initial = initial
        self.stacked = stacked

    def of_one_draw(self, problem: BilevelProblem) -> bool:
        """See `Estimator.of_one_draw`."""
        return problem.stochastic or self.update.noisy

    def _check(self, given: RestrictedProblem) -> None:
        for name, leaf in zip(
            leaf_names(given.hparams), jax.tree.leaves(given.hparams), strict=True
        ):
            dtype = jnp.result_type(leaf) if eqx.is_array_like(leaf) else None
            if dtype is not None and jnp.issubdtype(dtype, jnp.integer):
                raise ValueError(
                    f"Hyperparameter {name!r} is an integer ({leaf!r}): a number of steps, a batch "
                    "size or a width has no derivative. Expected floating-point arrays; leave it "
                    "out of hparams, or to a searcher."
                )
        if not jax.tree.leaves(given.w):
            raise ValueError("params: expected at least one floating-point array, received none.")
        require_differentiable(jax.tree.leaves(given.h))
        if not self.stacked:
            return
        for path, leaf in jax.tree_util.tree_leaves_with_path(given.inner_batch):
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

    def _begun(self, given: RestrictedProblem) -> Dynamics:
        """The run whose start depends on the hyperparameters."""
        self._check(given)
        return self._run(given, lambda hparams: self._start(given.params, hparams))

    def _continued(self, given: RestrictedProblem, step_state: PyTree) -> Dynamics:
        """The run from params and a step state, both constant."""
        self._check(given)
        return self._run(given, lambda _: (given.params, step_state))

    def _run(self, given: RestrictedProblem, start: Callable) -> Dynamics:
        return Dynamics(self.update, given, start, self.stacked)

    def _scale(self, given: RestrictedProblem) -> Scalar:
        """What residuals are relative to."""
        first = replace(given, inner_batch=self._batch_at(given.inner_batch, 0))
        return residual_scale(first.residual, first.w)[1]

    def _residual(self, given: RestrictedProblem, state: Any) -> Scalar:
        """The stationarity of the state's params on the last step's batch."""
        batch = self._batch_at(given.inner_batch, self.steps - 1)
        last = replace(given, params=state.params, inner_batch=batch)
        return vector.norm(last.residual()) / state.scale

    def _result(self, given: RestrictedProblem, state: Any, found: Differentiated) -> Hypergradient:
        """In the user's dtypes, with what unrolling does not have left unknown."""
        run, value = found.run, found.value
        residual = self._residual(given, state)
        grad = vector.cast_like(found.grad, run.like(found.grad))
        intact = found.intact & jnp.isfinite(value) & vector.all_finite(grad)
        grad = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0), grad)
        ended = Outcome.partial if run.partial else Outcome.solved
        info = HypergradientInfo(
            inner_residual=residual,
            inner_iterations=state.inner_iterations,
            linear_residual=jnp.full((), jnp.nan, residual.dtype),
            iterations=found.steps,
            outcome=Outcome.where(intact, ended, Outcome.not_finite),
            error=jnp.where(intact, jnp.nan if run.partial else found.error, jnp.inf),
        )
        return Hypergradient(value, grad, state, info, found.aux)


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
