"""Exact regression: two objectives in closed form, and no inner problem.

Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), sections 5.4.1 and 5.4.2.
"""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, HypergradientInfo
from hypergrad.gaussian_process.likelihoods import Gaussian
from hypergrad.gaussian_process.problem import GPProblem
from hypergrad.gaussian_process.sites import Sites
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator


class RegressionState(eqx.Module):
    """`params`: the `Sites`, which are the observations and their noise after `fit`."""

    params: Sites


def _noise(problem: GPProblem, hparams: PyTree) -> Scalar:
    assert isinstance(problem.likelihood, Gaussian)
    return jnp.exp(problem.likelihood.log_variance(hparams))


class _Regression(RestrictedEstimator):
    """What both share: the exact posterior, as sites; a loss of the data and the hyperparameters.

    `info` has nothing to tell: residuals and the error are zero; `outcome` is "not_finite" for a
    kernel matrix that is not positive semidefinite.
    """

    state_type: ClassVar[type] = RegressionState

    @abstractmethod
    def log_score(self, covariance: Array, y: Array) -> Scalar:
        """What is maximised, of the covariance of the observations."""

    def _init(self, given: RestrictedProblem) -> RegressionState:
        problem = given.problem
        if not (isinstance(problem, GPProblem) and isinstance(problem.likelihood, Gaussian)):
            raise ValueError(
                f"{type(self).__name__}: problem: expected a GPProblem with the likelihood "
                f"Gaussian, received a {type(getattr(problem, 'likelihood', problem)).__name__}."
            )
        return RegressionState(given.params)

    def _fit(
        self, given: RestrictedProblem, state: RegressionState
    ) -> tuple[RegressionState, FitInfo]:
        assert isinstance(given.problem, GPProblem)
        _, y = given.inner_batch
        precision = jnp.ones_like(y) / _noise(given.problem, given.hparams)
        sites = Sites(precision * y, precision)
        return RegressionState(sites), FitInfo(jnp.zeros(()), jnp.ones((), jnp.int32))

    def _hypergradient(self, given: RestrictedProblem, state: RegressionState) -> Hypergradient:
        problem, _, hparams, (x, y) = given.inner_arguments
        assert isinstance(problem, GPProblem)

        def loss(hparams: PyTree) -> Scalar:
            noise = _noise(problem, hparams) * jnp.eye(y.shape[0], dtype=y.dtype)
            return -self.log_score(problem.kernel(hparams, x, x) + noise, y)

        # Nothing is inner here; a variable of its own lets the loss be traced for what it reads.
        traced = BilevelProblem(lambda w, h, _: 0.5 * w**2, lambda w, h, _: loss(h) + w)
        given = RestrictedProblem(traced, jnp.zeros(()), hparams)
        require_effect(trace_paths(traced, given.w, hparams, None, None), type(self).__name__)
        value, grad = jax.value_and_grad(lambda h: loss(given.hparams_at(h)))(given.h)
        finite = jnp.isfinite(value) & vector.all_finite(grad)
        nothing = jnp.zeros_like(value)
        info = HypergradientInfo(
            inner_residual=nothing,
            inner_iterations=jnp.ones((), jnp.int32),
            linear_residual=nothing,
            iterations=jnp.zeros((), jnp.int32),
            outcome=Outcome.where(finite, Outcome.solved, Outcome.not_finite),
            error=jnp.where(finite, nothing, jnp.inf),
        )
        return Hypergradient(value, grad, state, info)


class MarginalLikelihood(_Regression):
    """`−log N(y | 0, K + σ² I)`."""

    def log_score(self, covariance: Array, y: Array) -> Scalar:
        """`log N(y | 0, covariance)`; Rasmussen and Williams (2006), eq. 5.8."""
        factor = jnp.linalg.cholesky(covariance)
        white = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        return -0.5 * (white @ white + log_det + y.size * jnp.log(2 * jnp.pi))


class LeaveOneOut(_Regression):
    """`−Σ log p(yᵢ | all others)`, from one inverse instead of `n`."""

    def log_score(self, covariance: Array, y: Array) -> Scalar:
        """`Σ log p(yᵢ | all others)`; Rasmussen and Williams (2006), eqs. 5.10 to 5.12."""
        factor = jnp.linalg.cholesky(covariance)
        eye = jnp.eye(y.shape[0], dtype=y.dtype)
        inverse = jax.scipy.linalg.cho_solve((factor, True), eye)
        precision = jnp.diagonal(inverse)
        away = (inverse @ y) / precision
        return 0.5 * jnp.sum(jnp.log(precision / (2 * jnp.pi)) - precision * away**2)
