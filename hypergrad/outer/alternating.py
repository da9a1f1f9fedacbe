"""Alternating optimization: some inner steps, one outer step, and again.

The outer loop of gradient-based hyperparameter optimization since Bengio (2000), in the
warm-started form of Lorraine, Vicol & Duvenaud (2020) and in the cold-started one, with any family
of hypergradient and any optax optimizer. What the two converge to is not the same where the inner
solution is not unique: Vicol et al., "On implicit bias in overparameterized bilevel optimization"
(2022).
"""

from dataclasses import replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from hypergrad.estimator import Estimator
from hypergrad.expected import require_optimizer
from hypergrad.linear import vector
from hypergrad.mistakes import check_estimator
from hypergrad.outcome import Outcome
from hypergrad.outer import loops
from hypergrad.outer.base import (
    BREAKDOWN,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    differentiable,
    first_state,
    known_error,
    optimizer_step,
    outer_info,
    step_on,
)
from hypergrad.outer.batches import Batches
from hypergrad.over_keys import of_expectation
from hypergrad.problem import BilevelProblem


class AlternatingState(OuterState):
    """The common state, the estimator's, the outer optimizer's, and where cold starts begin."""

    estimator_state: Any
    optimizer_state: PyTree
    first_params: PyTree


class Alternating(OuterAlgorithm):
    """Inner steps and optimizer steps in turn.

    A step fits the response at the current hyperparameters, takes the hypergradient there, and
    moves the hyperparameters.

    **Arguments:**

    - `estimator`: the family of hypergradient; its own solver says how many inner iterations one
      fit takes.
    - `optimizer`: any optax optimizer of the hyperparameters. To clip the hypergradient (its final
      value, never the vectors inside the estimate) chain `optax.clip_by_global_norm` before it.
    - `fits`: fits per outer step, each on its own mini-batch if the batch policy draws several.
      Default 1.
    - `start`: "warm" continues from the last inner solution; "cold" begins each outer step at the
      initial `params`; a number `n` resets to them every `n` outer steps. Default "warm".
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    Along a hypergradient that `Metasmooth` finds to be noise over such a step no step is taken: the
    hyperparameters stay, the inner solution moves on, and `accepted` is false.

    The inner residual reported is the estimator's, relative.
    """

    estimator: Estimator
    optimizer: optax.GradientTransformation
    fits: int = eqx.field(static=True, default=1)
    start: Literal["warm", "cold"] | int = eqx.field(static=True, default="warm")
    constraint: PyTree = None

    def __check_init__(self) -> None:
        check_estimator(self.estimator)
        require_optimizer("Alternating", self.optimizer)
        if self.fits < 1:
            raise ValueError(f"Alternating: fits: expected at least 1, received {self.fits}.")
        count = isinstance(self.start, int) and self.start >= 1
        if self.start not in ("warm", "cold") and not count:
            raise ValueError(
                'Alternating: start: expected "warm", "cold" or a number of outer steps >= 1, '
                "received "
                f"{self.start!r}."
            )

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> AlternatingState:
        """See `OuterAlgorithm.init`."""
        state = self.estimator.init(problem, params, hparams, batches.inner(), key=key)
        return first_state(
            AlternatingState,
            params,
            hparams,
            estimator_state=state,
            optimizer_state=self.optimizer.init(differentiable(hparams)),
            first_params=None if self.start == "warm" else params,
        )

    def step(
        self,
        problem: BilevelProblem,
        state: AlternatingState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[AlternatingState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        hparams = state.hparams
        keys = [None] * 2 if key is None else list(jax.random.split(key))
        response = state.estimator_state
        if self.start != "warm":
            fresh = self.estimator.init(
                problem, state.first_params, hparams, batches.inner(), key=keys[0]
            )
            every = 1 if self.start == "cold" else self.start
            response = vector.where(state.step % every == 0, fresh, response)

        def fit(response: PyTree, number: Array) -> tuple[PyTree, Array]:
            noise = None if keys[0] is None else jax.random.fold_in(keys[0], number)
            fitted, info = self.estimator.fit(
                problem, response, hparams, batches.inner(number), key=noise
            )
            return fitted, info.iterations

        if self.fits == 1:
            response, iterations = fit(response, jnp.zeros((), jnp.int32))
        else:
            response, each = loops.scan(fit, response, jnp.arange(self.fits))
            iterations = jnp.sum(each)

        estimate = self.estimator.hypergradient(
            problem, response, hparams, batches.linear, batches.outer, key=keys[1]
        )
        moved, optimizer_state, good = optimizer_step(
            self.optimizer, state.optimizer_state, hparams, estimate.grad, self.constraint
        )
        smooth = estimate.info.outcome != Outcome.not_metasmooth
        moved = vector.where(smooth, moved, hparams)
        optimizer_state = vector.where(smooth, optimizer_state, state.optimizer_state)
        good = good & jnp.isfinite(estimate.value) & vector.all_finite(differentiable(moved))
        response = estimate.state
        new = replace(
            state,
            hparams=moved,
            visited=hparams,
            params=response.params,
            hypergradient=estimate.grad,
            estimator_state=response,
            optimizer_state=optimizer_state,
        )
        info = outer_info(
            estimate.value,
            estimate.grad,
            hparams,
            self.constraint,
            calls=iterations + estimate.info.iterations + estimate.info.error_calls + 2,
            error=known_error(of_expectation(problem, self.estimator, estimate.info)),
            inner_residual=estimate.info.inner_residual,
            linear_residual=estimate.info.linear_residual,
            inner_iterations=iterations,
            accepted=good & smooth,
            stop=jnp.where(good, RUNNING, BREAKDOWN),
        )
        return step_on(state, new, good), info
