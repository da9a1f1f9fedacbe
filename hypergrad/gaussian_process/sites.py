"""A Gaussian approximation to the posterior: the prior times one Gaussian factor an observation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar


class Sites(eqx.Module):
    """Natural parameters of the factors `exp(shift f − ½ precision f²)`, one for an observation."""

    shift: Float[Array, " n"]
    precision: Float[Array, " n"]


class Posterior(eqx.Module):
    """The marginals under given sites and kernel matrix, and what evidences are made of.

    - `mean`, `variance`: marginals, shape `(n,)`.
    - `weights`: `K⁻¹ mean`, without that inverse.
    - `log_det`: `log det(I + Λ^½ K Λ^½)`, `Λ` the precisions of the sites.
    - `quadratic`: `½ shiftᵀ Σ shift`, `Σ` the posterior covariance.
    """

    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    weights: Float[Array, " n"]
    log_det: Scalar
    quadratic: Scalar

    @staticmethod
    def of(kernel: Float[Array, "n n"], sites: Sites) -> "Posterior":
        """Condition the prior on the sites: one Cholesky factor of what never is singular."""
        root = _root(sites.precision)
        factor = _factor(kernel, root)
        # K − K Λ^½ B⁻¹ Λ^½ K, by its diagonal and its product with the shift.
        half = jax.scipy.linalg.solve_triangular(factor, root[:, None] * kernel, lower=True)
        variance = jnp.diagonal(kernel) - jnp.sum(half**2, axis=0)
        mean = kernel @ sites.shift - half.T @ (half @ sites.shift)
        return Posterior(
            mean=mean,
            variance=variance,
            weights=sites.shift - sites.precision * mean,
            log_det=2 * jnp.sum(jnp.log(jnp.diagonal(factor))),
            quadratic=0.5 * jnp.vdot(sites.shift, mean),
        )

    def cavity(self, sites: Sites) -> tuple[Array, Array]:
        """Mean and variance of every marginal without its own site."""
        precision = 1 / self.variance - sites.precision
        return (self.mean / self.variance - sites.shift) / precision, 1 / precision


def predict(
    kernel: Float[Array, "n n"],
    cross: Float[Array, "n m"],
    prior: Float[Array, " m"],
    sites: Sites,
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Mean and variance of the latent function at other places.

    **Arguments:** `cross`: kernel between observed and other places; `prior`: its variance there.
    """
    root = _root(sites.precision)
    weights = Posterior.of(kernel, sites).weights
    half = jax.scipy.linalg.solve_triangular(
        _factor(kernel, root), root[:, None] * cross, lower=True
    )
    return cross.T @ weights, prior - jnp.sum(half**2, axis=0)


def _root(precision: Array) -> Array:
    """`√precision`, with derivative zero at zero: a site that says nothing."""
    there = precision > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, precision, 1)), 0)


def _factor(kernel: Array, root: Array) -> Array:
    eye = jnp.eye(root.size, dtype=root.dtype)
    return jnp.linalg.cholesky(eye + root[:, None] * kernel * root)
