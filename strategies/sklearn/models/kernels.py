"""Kernel matrices, differentiable in their hyperparameters."""

import jax.numpy as jnp
import numpy as np
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
    """The kernel between all pairs of samples.

    `gamma` may be one number per feature: it multiplies that feature's squared distances (rbf) or
    products (polynomial, linear; scikit-learn's linear kernel is the one with `gamma` 1).
    """
    if kernel == "rbf":
        # Centred, so that rounding does not eat the distances of samples far from the origin.
        scaled = (x - jnp.mean(x, axis=0)) * jnp.sqrt(gamma)
        norms = jnp.sum(scaled**2, axis=1)
        distances = jnp.maximum(norms[:, None] + norms - 2.0 * scaled @ scaled.T, 0.0)
        return jnp.exp(-distances)
    products = (x * gamma) @ x.T
    return products if kernel == "linear" else (products + coef0) ** degree


def per_feature(kernel: str, strength: str) -> str:
    """The parameter of which there may be one per feature: a linear kernel has only the penalty."""
    return strength if kernel == "linear" else "gamma"


def kernel_split(value: np.ndarray, *, inverse: bool) -> tuple[float, np.ndarray]:
    """The geometric mean of one value per feature, and the columns' factors that make up for it.

    A column divided by r has `gamma`, or an inverse penalty (`inverse`), divided by r².
    """
    reference = float(np.exp(np.mean(np.log(value))))
    relative = reference / value if inverse else value / reference
    return reference, np.sqrt(relative)
