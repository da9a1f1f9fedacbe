"""Laplace's approximation: sites that touch the likelihood at the mode.

Williams and Barber (1998); Rasmussen and Williams, "Gaussian Processes for Machine Learning"
(2006), sections 3.4 and 5.5.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.gaussian_process.estimator import SiteEstimator
from hypergrad.gaussian_process.problem import GPProblem, held
from hypergrad.gaussian_process.sites import Sites


class LaplaceGP(SiteEstimator):
    """Sites with the slope and the curvature of the log likelihood at the posterior's mode.

    A whole step is one of Newton's method; `step` is 1 by default. The evidence depends on the
    curvature at the mode, which moves: `through_sites` is `True` by default. For the parameters see
    `SiteEstimator`.
    """

    step: float = 1.0
    through_sites: bool = True

    def update(self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree) -> Sites:
        """See `SiteEstimator.update`."""
        mode = problem.posterior(sites, hparams, batch).mean
        slope, curvature = self._derivatives(problem, mode, hparams, batch)
        return held(problem.likelihood, Sites(slope - curvature * mode, -curvature))

    def log_evidence(
        self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree
    ) -> Scalar:
        """See `SiteEstimator.log_evidence`."""
        _, y = batch
        posterior = problem.posterior(sites, hparams, batch)
        each = jax.vmap(lambda f, y: problem.likelihood.log_density(f, y, hparams))
        prior = 0.5 * jnp.vdot(posterior.mean, posterior.weights)
        return jnp.sum(each(posterior.mean, y)) - prior - 0.5 * posterior.log_det

    @staticmethod
    def _derivatives(
        problem: GPProblem, f: Array, hparams: PyTree, batch: PyTree
    ) -> tuple[Array, Array]:
        _, y = batch
        density = problem.likelihood.log_density
        first = jax.vmap(lambda f, y: jax.grad(density)(f, y, hparams))
        second = jax.vmap(lambda f, y: jax.grad(jax.grad(density))(f, y, hparams))
        return first(f, y), second(f, y)
