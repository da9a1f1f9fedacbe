"""A Gaussian approximation to the posterior: the prior times one Gaussian factor an observation."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

# Covariances are differences of products: not in the reduced precision that accelerators take.
_HIGHEST = jax.lax.Precision.HIGHEST
_product = partial(jnp.matmul, precision=_HIGHEST)
_vdot = partial(jnp.vdot, precision=_HIGHEST)


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
        # Not the maximum, of which half the derivative is missing at zero.
        precision = jnp.where(sites.precision < 0, 0, sites.precision)
        mean, variance, log_det = _marginals(kernel, sites.shift, precision)
        return Posterior(
            mean=mean,
            variance=variance,
            weights=sites.shift - precision * mean,
            log_det=log_det,
            quadratic=0.5 * _vdot(sites.shift, mean),
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
    return _product(cross.T, weights), prior - jnp.sum(half**2, axis=0)


@jax.custom_jvp
def _marginals(kernel: Array, shift: Array, precision: Array) -> tuple[Array, Array, Scalar]:
    """Mean and variance of the marginals, and `log det(I + Λ^½ K Λ^½)`.

    Derivatives in closed form, of the covariance: a product of the sites' Jacobian is then one of a
    matrix and a vector, where the derivative of a Cholesky factor is a cubic number of operations.
    """
    root = _root(precision)
    factor = _factor(kernel, root)
    # K − K Λ^½ B⁻¹ Λ^½ K, by its diagonal and its product with the shift.
    half = jax.scipy.linalg.solve_triangular(factor, root[:, None] * kernel, lower=True)
    mean = _product(kernel, shift) - _product(half.T, _product(half, shift))
    variance = jnp.diagonal(kernel) - jnp.sum(half**2, axis=0)
    return mean, variance, 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


@_marginals.defjvp
def _marginals_jvp(given: tuple, moved: tuple) -> tuple[tuple, tuple]:
    (kernel, shift, precision), (by_kernel, by_shift, by_precision) = given, moved
    # The very values that are found where nothing is differentiated.
    mean, variance, log_det = _marginals(kernel, shift, precision)
    covariance, left, _ = _conditioned(kernel, precision)
    weights = shift - precision * mean
    by_sites = _product(covariance, by_shift - by_precision * mean)
    d_mean = by_sites + _product(left, _product(by_kernel, weights))
    d_variance = jnp.sum(_product(left, by_kernel) * left, axis=1)
    d_variance -= _product(covariance**2, by_precision)
    d_log_det = _vdot(by_precision, variance) + _vdot(precision[:, None] * left, by_kernel)
    return (mean, variance, log_det), (d_mean, d_variance, d_log_det)


@jax.custom_jvp
def _conditioned(kernel: Array, precision: Array) -> tuple[Array, Array, Scalar]:
    """`Σ = (K⁻¹ + Λ)⁻¹`, `Σ K⁻¹`, and the log determinant, none of them by an inverse of `K`."""
    root = _root(precision)
    factor = _factor(kernel, root)
    inverse = jax.scipy.linalg.solve_triangular(
        factor, jnp.eye(root.size, dtype=factor.dtype), lower=True
    )
    half = _product(inverse, root[:, None] * kernel)
    covariance = kernel - _product(half.T, half)
    # I − Σ Λ; where a site is precise that is a difference of nearly equal numbers, and the same
    # row of Λ^-½ B⁻¹ Λ^½ is not.
    near = jnp.eye(root.size, dtype=factor.dtype) - covariance * precision
    precise = precision * jnp.diagonal(kernel) > 1
    scaled = _product(inverse.T, inverse) * root / jnp.where(precise, root, 1)[:, None]
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return covariance, jnp.where(precise[:, None], scaled, near), log_det


@_conditioned.defjvp
def _conditioned_jvp(given: tuple, moved: tuple) -> tuple[tuple, tuple]:
    (kernel, precision), (by_kernel, by_precision) = given, moved
    covariance, left, log_det = _conditioned(kernel, precision)
    d_covariance = _product(_product(left, by_kernel), left.T)
    d_covariance -= _product(covariance * by_precision, covariance)
    d_left = -d_covariance * precision - covariance * by_precision
    d_log_det = _vdot(by_precision, jnp.diagonal(covariance))
    d_log_det += _vdot(precision[:, None] * left, by_kernel)
    return (covariance, left, log_det), (d_covariance, d_left, d_log_det)


def _root(precision: Array) -> Array:
    """`√precision`, with derivative zero at zero: a site that says nothing."""
    there = precision > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, precision, 1)), 0)


def _factor(kernel: Array, root: Array) -> Array:
    eye = jnp.eye(root.size, dtype=root.dtype)
    return jnp.linalg.cholesky(eye + root[:, None] * kernel * root)
