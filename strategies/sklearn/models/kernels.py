"""Kernel matrices, differentiable in their hyperparameters."""

import jax.numpy as jnp
from jaxtyping import Array, Float

#: Hyperparameters of a kernel that have a derivative.
KERNELS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "rbf": ("gamma",),
    "poly": ("gamma", "coef0"),
    "polynomial": ("gamma", "coef0"),
}


def kernel_matrix(
    kernel: str, x: Float[Array, "n p"], gamma: Array, coef0: Array, degree: float
) -> Float[Array, "n n"]:
    """The kernel between all pairs of samples; `"rbf"` takes a `gamma` per feature as well."""
    if kernel == "linear":
        return x @ x.T
    if kernel == "rbf":
        # Centred, so that rounding does not eat the distances of samples far from the origin.
        scaled = (x - jnp.mean(x, axis=0)) * jnp.sqrt(gamma)
        norms = jnp.sum(scaled**2, axis=1)
        distances = jnp.maximum(norms[:, None] + norms - 2.0 * scaled @ scaled.T, 0.0)
        return jnp.exp(-distances)
    return (gamma * (x @ x.T) + coef0) ** degree


__all__ = ["KERNELS", "kernel_matrix"]
