"""Covariances of Gaussian processes, differentiable in their hyperparameters.

The kernels are `sklearn.gaussian_process.kernels`: Rasmussen and Williams, *Gaussian Processes for
Machine Learning*, 2006, chapter 4.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float
from sklearn.gaussian_process import kernels as known

from strategies.sklearn.models.base import NotDifferentiableError

#: The value of a kernel's parameter, from its path within the estimator.
Value = Callable[[str], Array]

#: Parameters of each kernel that have a derivative.
_PARAMETERS: dict[type, tuple[str, ...]] = {
    known.ConstantKernel: ("constant_value",),
    known.WhiteKernel: ("noise_level",),
    known.RBF: ("length_scale",),
    known.Matern: ("length_scale",),
    known.RationalQuadratic: ("length_scale", "alpha"),
    known.ExpSineSquared: ("length_scale", "periodicity"),
    known.DotProduct: ("sigma_0",),
}
#: Kernels that see features only through their distances.
_OF_DISTANCES = (known.RBF, known.Matern, known.RationalQuadratic)
#: Those that do not see features at all.
_OF_NOTHING = (known.ConstantKernel, known.WhiteKernel)
#: How often a Matérn process can be differentiated, plus one half.
_SMOOTHNESS = (0.5, 1.5, 2.5, math.inf)


def leaves(kernel: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The simple kernels of a sum, product or power, by their path.

    **Raises:** `NotDifferentiableError` for a kernel that is not known.
    """
    if type(kernel) in (known.Sum, known.Product):
        yield from leaves(kernel.k1, f"{path}__k1")
        yield from leaves(kernel.k2, f"{path}__k2")
    elif type(kernel) is known.Exponentiation:
        yield from leaves(kernel.kernel, f"{path}__kernel")
    elif type(kernel) not in _PARAMETERS:
        raise NotDifferentiableError(f"kernel {kernel}")
    elif type(kernel) is known.Matern and kernel.nu not in _SMOOTHNESS:
        raise NotDifferentiableError(f"kernel {kernel}, nu other than {_SMOOTHNESS}")
    else:
        yield path, kernel


def parameters(kernel: Any, path: str) -> tuple[str, ...]:
    """Paths of all parameters that have a derivative."""
    return tuple(
        f"{at}__{name}" for at, leaf in leaves(kernel, path) for name in _PARAMETERS[type(leaf)]
    )


def length_scale(kernel: Any, path: str) -> str | None:
    """The path of the only length scale, if all that the features matter for are its distances."""
    seen = [(at, leaf) for at, leaf in leaves(kernel, path) if type(leaf) not in _OF_NOTHING]
    if len(seen) == 1 and type(seen[0][1]) in _OF_DISTANCES:
        return f"{seen[0][0]}__length_scale"
    return None


def covariance(
    kernel: Any, path: str, value: Value, x: Float[Array, "n p"], *, white: bool
) -> Float[Array, "n n"]:
    """The covariance between all pairs of samples; white noise is there only if asked for."""

    def of(part: str, inner: Any) -> Array:
        return covariance(inner, f"{path}__{part}", value, x, white=white)

    kind = type(kernel)
    if kind is known.Sum:
        return of("k1", kernel.k1) + of("k2", kernel.k2)
    if kind is known.Product:
        return of("k1", kernel.k1) * of("k2", kernel.k2)
    if kind is known.Exponentiation:
        return of("kernel", kernel.kernel) ** kernel.exponent
    own = {name: value(f"{path}__{name}") for name in _PARAMETERS[kind]}
    size = len(x)
    if kind is known.ConstantKernel:
        return jnp.full((size, size), own["constant_value"])
    if kind is known.WhiteKernel:
        return own["noise_level"] * jnp.eye(size) if white else jnp.zeros((size, size))
    if kind is known.DotProduct:
        return own["sigma_0"] ** 2 + x @ x.T
    scale = own["length_scale"]
    if kind is known.RBF:
        return jnp.exp(-0.5 * _squares(x / scale))
    if kind is known.RationalQuadratic:
        return (1.0 + _squares(x / scale) / (2.0 * own["alpha"])) ** -own["alpha"]
    if kind is known.ExpSineSquared:
        angles = jnp.pi * _distances(x) / own["periodicity"]
        return jnp.exp(-2.0 * (jnp.sin(angles) / scale) ** 2)
    return _matern(x / scale, kernel.nu)


def _matern(x: Float[Array, "n p"], nu: float) -> Float[Array, "n n"]:
    if nu == math.inf:
        return jnp.exp(-0.5 * _squares(x))
    d = math.sqrt(2.0 * nu) * _distances(x)
    series = {0.5: jnp.ones_like(d), 1.5: 1.0 + d, 2.5: 1.0 + d + d**2 / 3.0}[nu]
    return series * jnp.exp(-d)


def _squares(x: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """Squared distances."""
    x = x - jnp.mean(x, axis=0)  # rounding would eat the distances of samples far from the origin
    norms = jnp.sum(x**2, axis=1)
    apart = jnp.maximum(norms[:, None] + norms - 2.0 * x @ x.T, 0.0)
    return apart * (1.0 - jnp.eye(len(x)))


def _distances(x: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """Distances, with the derivative zero where they are zero."""
    squares = _squares(x)
    apart = squares > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1.0)), 0.0)
