"""Variational inference for the posterior, and two evidences at its sites.

Li, John and Solin, "Improving Hyperparameter Learning under Approximate Inference in Gaussian
Process Models" (ICML 2023); the sites by conjugate-computation variational inference (Khan & Lin,
AISTATS 2017).
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.expected import require_choice
from hypergrad.gaussian_process.estimator import SiteEstimator
from hypergrad.gaussian_process.expectation_propagation import log_evidence_of_sites
from hypergrad.gaussian_process.problem import GPProblem, variational_update
from hypergrad.gaussian_process.sites import Sites


class VariationalGP(SiteEstimator):
    """Variational sites; hyperparameters by the bound, or by the evidence that EP would compute.

    The bound is stationary in the sites, so nothing is left out by holding them fixed. The other
    objective is closer to the evidence, but its gradient is that of the published method only
    with the sites held fixed: compare `through_sites=True`.

    **Arguments:** as for `SiteEstimator`, and

    - `objective`: `"ep"`, the evidence of expectation propagation at the variational sites (the
      default), or `"elbo"`, the variational bound.
    """

    objective: Literal["ep", "elbo"] = eqx.field(static=True, default="ep")

    def __check_init__(self) -> None:
        require_choice("VariationalGP", "objective", self.objective, ("ep", "elbo"))

    @property
    def stationary(self) -> bool:  # type: ignore[override]
        """Whether the objective is stationary in the sites: the bound is."""
        return self.objective == "elbo"

    def update(self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree) -> Sites:
        """See `SiteEstimator.update`."""
        x, y = batch
        return variational_update(
            problem.kernel(hparams, x, x), problem.likelihood, sites, hparams, y
        )

    def log_evidence(
        self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree
    ) -> Scalar:
        """See `SiteEstimator.log_evidence`."""
        if self.objective == "ep":
            return log_evidence_of_sites(problem, sites, hparams, batch)
        _, y = batch
        posterior = problem.posterior(sites, hparams, batch)
        each = jax.vmap(lambda m, v, y: problem.likelihood.expected(m, v, y, hparams))
        divergence = 0.5 * (
            posterior.log_det
            - jnp.vdot(sites.precision, posterior.variance)
            + jnp.vdot(posterior.mean, posterior.weights)
        )
        return jnp.sum(each(posterior.mean, posterior.variance, y)) - divergence
