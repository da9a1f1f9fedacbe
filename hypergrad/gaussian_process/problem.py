"""A kernel and a likelihood, as a bilevel problem over sites."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from hypergrad.gaussian_process.likelihoods import Likelihood
from hypergrad.gaussian_process.sites import Posterior, Sites, predict
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem

#: Precision that a site has at least, of a likelihood that is not log-concave.
_LEAST = 1e-6


class GPProblem(BilevelProblem):
    """A latent function with a Gaussian-process prior of mean zero, observed at `n` places.

    The inner variables are `Sites`, from `problem.sites(batch)`; which sites solve the inner
    problem is for the estimator to say (`VariationalGP`, `LaplaceGP`, `ExpectationPropagation`). A
    batch is a pair `(x, y)`, all of the training data; the estimators need no outer batch.

    As a plain `BilevelProblem` the optimality map is that of variational inference, and `outer` the
    mean of `E (−log p(y | f))` over the marginals at the batch's own places.

    **Arguments:**

    - `kernel`: `kernel(hparams, x, z) -> (len(x), len(z))`, positive semidefinite for `x = z`.
    - `likelihood`: a `Likelihood`: `Probit()`, `Gaussian(...)`, or one of your own.
    """

    kernel: Callable = None  # type: ignore[assignment]
    likelihood: Likelihood = None  # type: ignore[assignment]

    def __init__(self, kernel: Callable, likelihood: Likelihood) -> None:
        if not isinstance(likelihood, Likelihood):
            raise ValueError(
                "GPProblem: 'likelihood': expected a Likelihood such as Probit(), received "
                f"{likelihood!r}."
            )
        if not callable(kernel):
            raise ValueError(
                "GPProblem: 'kernel': expected a function kernel(hparams, x, z), received "
                f"{kernel!r}."
            )
        self.kernel = kernel
        self.likelihood = likelihood
        self.inner = None
        self.optimality = _variational_residual(kernel, likelihood)
        self.outer = _mean_loss(kernel, likelihood)
        self.has_aux = False
        self.stochastic = False

    @staticmethod
    def sites(batch: PyTree) -> Sites:
        """Sites of precision zero, with which the posterior is the prior."""
        _, y = batch
        nothing = jnp.zeros(jnp.shape(y), jnp.result_type(float))
        return Sites(nothing, nothing)

    def posterior(self, sites: Sites, hparams: PyTree, batch: PyTree) -> Posterior:
        """Marginals at the observed places."""
        x, _ = batch
        return Posterior.of(self.kernel(hparams, x, x), sites)

    def predict(
        self, sites: Sites, hparams: PyTree, batch: PyTree, x: Array
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """Mean and variance of the latent function at other places `x`."""
        seen, _ = batch
        prior = jax.vmap(lambda z: self.kernel(hparams, z[None], z[None])[0, 0])(x)
        return predict(
            self.kernel(hparams, seen, seen), self.kernel(hparams, seen, x), prior, sites
        )

    def log_predictive(
        self, sites: Sites, hparams: PyTree, batch: PyTree, other: PyTree
    ) -> Float[Array, " m"]:
        """`log p(y | x, batch)` for every pair of other data."""
        x, y = other
        mean, variance = self.predict(sites, hparams, batch, x)
        each = jax.vmap(lambda m, v, y: self.likelihood.log_mean(m, v, y, hparams))
        return each(mean, variance, y)


def variational_update(
    kernel: Array, likelihood: Likelihood, sites: Sites, hparams: PyTree, y: Array
) -> Sites:
    """Sites of the next natural-gradient step of length one (Khan & Lin 2017)."""
    posterior = Posterior.of(kernel, sites)
    slopes = jax.vmap(
        lambda m, v, y: jax.grad(likelihood.expected, argnums=(0, 1))(m, v, y, hparams)
    )
    by_mean, by_variance = slopes(posterior.mean, posterior.variance, y)
    return held(likelihood, Sites(by_mean - 2 * posterior.mean * by_variance, -2 * by_variance))


def held(likelihood: Likelihood, sites: Sites) -> Sites:
    """Sites of precision at least 1e-6 where the likelihood can make them negative."""
    if likelihood.log_concave:
        return sites
    return Sites(sites.shift, jnp.maximum(sites.precision, _LEAST))


def any_held(likelihood: Likelihood, sites: Sites) -> Bool[Array, ""]:
    """Whether a site is at that bound, where an evidence need not be stationary in it."""
    if likelihood.log_concave:
        return jnp.asarray(False)
    return jnp.any(sites.precision <= 2 * _LEAST)


def _variational_residual(kernel: Callable, likelihood: Likelihood) -> Callable:
    def residual(sites: Sites, hparams: PyTree, batch: PyTree) -> Sites:
        x, y = batch
        return vector.sub(
            sites, variational_update(kernel(hparams, x, x), likelihood, sites, hparams, y)
        )

    return residual


def _mean_loss(kernel: Callable, likelihood: Likelihood) -> Callable:
    def outer(sites: Sites, hparams: PyTree, batch: PyTree) -> Array:
        if batch is None:
            return jnp.asarray(jnp.nan)
        x, y = batch
        posterior = Posterior.of(kernel(hparams, x, x), sites)
        each = jax.vmap(lambda m, v, y: likelihood.expected(m, v, y, hparams))
        return -jnp.mean(each(posterior.mean, posterior.variance, y))

    return outer
