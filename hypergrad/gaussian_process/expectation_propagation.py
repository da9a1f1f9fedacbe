"""Expectation propagation: sites that match moments.

Minka (2001); Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), section 3.6.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.gaussian_process.estimator import SiteEstimator
from hypergrad.gaussian_process.problem import GPProblem, held
from hypergrad.gaussian_process.sites import Sites


class ExpectationPropagation(SiteEstimator):
    """Sites at which every marginal has the moments that its likelihood gives its cavity.

    All sites move at once (parallel EP), so `step` is best below one; default 0.5. The evidence is
    stationary in the sites: nothing is left out by holding them fixed. For the parameters see
    `SiteEstimator`.
    """

    stationary: ClassVar[bool] = True
    step: float = 0.5

    def update(self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree) -> Sites:
        """See `SiteEstimator.update`."""
        _, y = batch
        mean, variance = problem.posterior(sites, hparams, batch).cavity(sites)
        log_mean = problem.likelihood.log_mean
        first = jax.vmap(lambda m, v, y: jax.grad(log_mean)(m, v, y, hparams))
        second = jax.vmap(lambda m, v, y: jax.grad(jax.grad(log_mean))(m, v, y, hparams))
        slope, curvature = first(mean, variance, y), second(mean, variance, y)
        shrink = 1 / (1 + curvature * variance)
        moved = Sites((slope - mean * curvature) * shrink, -curvature * shrink)
        return held(problem.likelihood, moved)

    def log_evidence(
        self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree
    ) -> Scalar:
        """See `SiteEstimator.log_evidence`."""
        return log_evidence_of_sites(problem, sites, hparams, batch)


def log_evidence_of_sites(
    problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree
) -> Scalar:
    """`log Z` of expectation propagation, at any sites: `log ∫ p(f) Π Ẑᵢ tᵢ(fᵢ) / zᵢ`.

    Every factor of the likelihood is replaced by its site, scaled so that both have one integral
    under the cavity.
    """
    _, y = batch
    posterior = problem.posterior(sites, hparams, batch)
    mean, variance = posterior.cavity(sites)
    scales = jax.vmap(lambda m, v, y: problem.likelihood.log_mean(m, v, y, hparams))(
        mean, variance, y
    )
    # log ∫ exp(shift f − ½ precision f²) N(f | mean, variance): of a Gaussian integral the log
    # is half the squared natural mean over the precision, before and after the site.
    joint = 1 / posterior.variance
    natural = mean / variance
    integrals = 0.5 * (
        (natural + sites.shift) ** 2 / joint - natural * mean - jnp.log(joint * variance)
    )
    return jnp.sum(scales - integrals) + posterior.quadratic - 0.5 * posterior.log_det
