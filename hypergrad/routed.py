"""Two estimators for one problem: each hyperparameter from the one that sees it."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.expected import require
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.linear import vector
from hypergrad.outcome import worse
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator, begun, differentiated, fitted


class RoutedState(eqx.Module):
    """The states of both estimators; `params` is that of the implicit one."""

    implicit: Any
    unrolled: Any

    @property
    def params(self) -> PyTree:
        """The current inner point."""
        return self.implicit.params


class Routed(RestrictedEstimator):
    """Implicit gradients where there are any, unrolled ones for the rest.

    A weight decay and a learning rate in one `hparams`: implicit differentiation gives the first
    exactly and cannot see the second; unrolling sees both, the first only as far as its steps
    reach.

    Both are fitted. `value`, `state.params`, `aux` and the info of `fit` are those of the implicit
    estimator. `info.error` is that of both parts together, `info.outcome` the worse of the two, and
    the other diagnostics are the implicit ones.

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

    def of_one_draw(self, problem: BilevelProblem) -> bool:
        """See `Estimator.of_one_draw`."""
        return self.implicit.of_one_draw(problem) or self.unrolled.of_one_draw(problem)

    def _init(self, given: RestrictedProblem) -> RoutedState:
        return RoutedState(begun(self.implicit, given), begun(self.unrolled, given))

    def _fit(self, given: RestrictedProblem, state: RoutedState) -> tuple[RoutedState, FitInfo]:
        implicit, info = fitted(self.implicit, given, state.implicit)
        unrolled, _ = fitted(self.unrolled, given, state.unrolled)
        return RoutedState(implicit, unrolled), info

    def _hypergradient(self, given: RestrictedProblem, state: RoutedState) -> Hypergradient:
        one = differentiated(self.implicit, given, state.implicit)
        two = differentiated(self.unrolled, given, state.unrolled)
        grad = jax.tree.map(
            lambda a, b: b if a is None else a, one.grad, two.grad, is_leaf=lambda x: x is None
        )
        info = HypergradientInfo(
            inner_residual=one.info.inner_residual,
            inner_iterations=one.info.inner_iterations + two.info.inner_iterations,
            # Of what the other one leaves unknown, a small residual says nothing.
            linear_residual=jnp.where(
                jnp.isnan(two.info.error), two.info.linear_residual, one.info.linear_residual
            ),
            iterations=one.info.iterations,
            outcome=worse(one.info.outcome, two.info.outcome),
            error=_together((one, two), grad),
            error_calls=one.info.error_calls + two.info.error_calls,
        )
        return Hypergradient(one.value, grad, RoutedState(one.state, two.state), info, one.aux)


def _together(parts: tuple[Hypergradient, Hypergradient], grad: PyTree) -> Scalar:
    """The relative error of a gradient from two: each is relative to all that its estimator saw."""
    one, two = (
        jnp.where(p.info.error > 0, p.info.error * vector.norm(p.grad), p.info.error) for p in parts
    )
    return jnp.where(jnp.hypot(one, two) > 0, jnp.hypot(one, two) / vector.norm(grad), one + two)
