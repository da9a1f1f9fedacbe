"""What is observed of a latent function at one place, given its value there."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_function_fields

#: Nodes of Gauss-Hermite quadrature: expectations of log probit to 1e-8 for variances below 10.
_NODES = 40


class Likelihood(eqx.Module):
    """`log p(y | f)` and its averages over Gaussians; by quadrature unless overridden.

    **Class attributes:** `log_concave`: whether it is, in `f`. If not, the precision of a site can
    become negative and is held at a small positive number; no evidence is stationary there.
    """

    log_concave: ClassVar[bool] = True

    @abstractmethod
    def log_density(self, f: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """`log p(y | f)`."""

    def expected(self, mean: Scalar, variance: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """`E log p(y | f)` over `f ~ N(mean, variance)`."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        weights = weights / weights.sum()
        f = mean + jnp.sqrt(variance) * nodes
        return jnp.sum(weights * jax.vmap(lambda f: self.log_density(f, y, hparams))(f))

    def log_mean(self, mean: Scalar, variance: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """`log E p(y | f)` over `f ~ N(mean, variance)`."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        f = mean + jnp.sqrt(variance) * nodes
        densities = jax.vmap(lambda f: self.log_density(f, y, hparams))(f)
        # Written out: a `logsumexp` may look at the sign of the sum, a decision for which a
        # derivative is not trusted.
        terms = densities + np.log(weights / weights.sum())
        top = jax.lax.stop_gradient(jnp.max(terms))
        return top + jnp.log(jnp.sum(jnp.exp(terms - top)))


class Probit(Likelihood):
    """Two classes, `y = ±1`, with probability `Φ(y f)`."""

    def log_density(self, f: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """See `Likelihood.log_density`."""
        return jax.scipy.special.log_ndtr(y * f)

    def log_mean(self, mean: Scalar, variance: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """See `Likelihood.log_mean`; in closed form."""
        return jax.scipy.special.log_ndtr(y * mean / jnp.sqrt(1 + variance))


class Gaussian(Likelihood):
    """Real observations with Gaussian noise.

    **Arguments:** `log_variance`: `log_variance(hparams) -> scalar`.
    """

    log_variance: Callable

    def __check_init__(self) -> None:
        require_function_fields(self, "log_variance")

    def log_density(self, f: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """See `Likelihood.log_density`."""
        return _log_normal(y - f, jnp.exp(self.log_variance(hparams)))

    def expected(self, mean: Scalar, variance: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """See `Likelihood.expected`; in closed form."""
        noise = jnp.exp(self.log_variance(hparams))
        return _log_normal(y - mean, noise) - 0.5 * variance / noise

    def log_mean(self, mean: Scalar, variance: Scalar, y: Scalar, hparams: PyTree) -> Scalar:
        """See `Likelihood.log_mean`; in closed form."""
        return _log_normal(y - mean, variance + jnp.exp(self.log_variance(hparams)))


def _log_normal(away: Array, variance: Array) -> Array:
    return -0.5 * (away**2 / variance + jnp.log(2 * jnp.pi * variance))
