"""The three verbs of an estimator, as functions of the problem at a point."""

from abc import abstractmethod
from typing import Any

from jaxtyping import Array, PyTree

from hypergrad.estimator import Estimator, FitInfo, Hypergradient
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem


class RestrictedEstimator(Estimator):
    """An estimator whose verbs work on the problem restricted to a point.

    That is where the state is, `state.params`; with all data and the key of the call.
    """

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Any:
        """See `Estimator.init`."""
        return self._init(RestrictedProblem(problem, params, hparams, inner_batch, key=key))

    def fit(
        self,
        problem: BilevelProblem,
        state: Any,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[Any, FitInfo]:
        """See `Estimator.fit`."""
        given = RestrictedProblem(problem, state.params, hparams, inner_batch, key=key)
        return self._fit(given, state)

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
        """See `Estimator.hypergradient`."""
        given = RestrictedProblem(problem, state.params, hparams, inner_batch, outer_batch, key)
        return self._hypergradient(given, state)

    @abstractmethod
    def _init(self, given: RestrictedProblem) -> Any:
        """The state at the point."""

    @abstractmethod
    def _fit(self, given: RestrictedProblem, state: Any) -> tuple[Any, FitInfo]:
        """Improve the response from the point."""

    @abstractmethod
    def _hypergradient(self, given: RestrictedProblem, state: Any) -> Hypergradient:
        """The hypergradient at the point."""


def begun(estimator: Estimator, given: RestrictedProblem) -> Any:
    """The state of any estimator at the point."""
    return estimator.init(*given.inner_arguments, key=given.key)


def fitted(estimator: Estimator, given: RestrictedProblem, state: Any) -> tuple[Any, FitInfo]:
    """`fit` of any estimator, from its own state."""
    data = given.hparams, given.inner_batch
    return estimator.fit(given.problem, state, *data, key=given.key)


def differentiated(estimator: Estimator, given: RestrictedProblem, state: Any) -> Hypergradient:
    """`hypergradient` of any estimator, at its own state."""
    data = given.hparams, given.inner_batch, given.outer_batch
    return estimator.hypergradient(given.problem, state, *data, key=given.key)
