"""Two estimators for one problem: each hyperparameter from the one that sees it."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.expected import require
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.outcome import Outcome
from hypergrad.problem import BilevelProblem


class RoutedState(eqx.Module):
    """The states of both estimators; `params` is that of the implicit one."""

    implicit: Any
    unrolled: Any

    @property
    def params(self) -> PyTree:
        """The current inner point."""
        return self.implicit.params


class Routed(Estimator):
    """Implicit gradients where there are any, unrolled ones for the rest.

    A weight decay and a learning rate in one `hparams`: implicit differentiation gives the first
    exactly and cannot see the second; unrolling sees both, the first only as far as its steps
    reach.

    `value`, `state.params` and `aux` are those of the implicit estimator. `info.error` is the
    larger of the two, the other diagnostics are the implicit ones.

    **Arguments:**

    - `implicit`: an `ImplicitDifferentiation` with `unseen="none"`.
    - `unrolled`: an estimator that sees the remaining hyperparameters, e.g. `Unrolled`.
    """

    state_type: ClassVar[type] = RoutedState
    implicit: ImplicitDifferentiation
    unrolled: Estimator

    def __check_init__(self) -> None:
        example = 'ImplicitDifferentiation(unseen="none")'
        require("Routed", "implicit", self.implicit, ImplicitDifferentiation, example)
        require("Routed", "unrolled", self.unrolled, Estimator, "Unrolled(...)")
        if self.implicit.unseen != "none":
            raise ValueError(
                'Routed: implicit: expected ImplicitDifferentiation(..., unseen="none"), received '
                'unseen="raise".'
            )

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> RoutedState:
        """Both states, at the same point."""
        return RoutedState(
            self.implicit.init(problem, params, hparams, inner_batch, key=key),
            self.unrolled.init(problem, params, hparams, inner_batch, key=key),
        )

    def fit(
        self,
        problem: BilevelProblem,
        state: RoutedState,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[RoutedState, FitInfo]:
        """Fit both; the info is the implicit one's."""
        implicit, info = self.implicit.fit(problem, state.implicit, hparams, inner_batch, key=key)
        unrolled, _ = self.unrolled.fit(problem, state.unrolled, hparams, inner_batch, key=key)
        return RoutedState(implicit, unrolled), info

    def hypergradient(
        self,
        problem: BilevelProblem,
        state: RoutedState,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """Both hypergradients, merged leaf by leaf."""
        batches = (inner_batch, outer_batch)
        one = self.implicit.hypergradient(problem, state.implicit, hparams, *batches, key=key)
        two = self.unrolled.hypergradient(problem, state.unrolled, hparams, *batches, key=key)
        grad = jax.tree.map(
            lambda a, b: b if a is None else a, one.grad, two.grad, is_leaf=lambda x: x is None
        )
        info = HypergradientInfo(
            inner_residual=one.info.inner_residual,
            inner_iterations=one.info.inner_iterations + two.info.inner_iterations,
            linear_residual=one.info.linear_residual,
            iterations=one.info.iterations,
            outcome=Outcome.where(two.info.breakdown, two.info.outcome, one.info.outcome),
            error=jnp.maximum(one.info.error, two.info.error),
            error_calls=one.info.error_calls + two.info.error_calls,
        )
        return Hypergradient(one.value, grad, RoutedState(one.state, two.state), info, one.aux)
