"""The distributions of hyperparameters over which a hypernetwork is trained."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from hypergrad.expected import require_numbers
from hypergrad.response.perturbation import Perturbation

# A sample of a normal distribution lies within this many standard deviations of its mean in all
# but 0.3 % of the cases: beyond it, the network has seen next to nothing.
REACH = 3.0


class Normal(eqx.Module):
    """A fixed normal distribution of the hyperparameters, for a global hypernetwork.

    **Arguments:**

    - `mean`: a number, or a pytree like `hparams`. Default 0.
    - `std`: standard deviation, a positive number or a pytree like `hparams`. Default 1.5.

    **Raises:** `ValueError` for what is no number, and for a `std` that is not positive.
    """

    mean: PyTree = 0.0
    std: PyTree = 1.5

    def __check_init__(self) -> None:
        _numbers("Normal", "mean", self.mean)
        _check_positive("Normal", "std", self.std)


class Uniform(eqx.Module):
    """A fixed uniform distribution of the hyperparameters, for a global hypernetwork.

    **Arguments:**

    - `low`, `high`: bounds with `low < high`, numbers or pytrees like `hparams`.

    **Raises:** `ValueError` for what is no number, and for `low` that is not below `high`.
    """

    low: PyTree
    high: PyTree

    def __check_init__(self) -> None:
        _numbers("Uniform", "low", self.low)
        _numbers("Uniform", "high", self.high)
        try:
            width = jax.tree.map(jnp.subtract, self.high, self.low)
        except (TypeError, ValueError):
            raise ValueError(
                "Uniform: low: expected a pytree like `high`, received "
                f"{jax.tree.map(jnp.shape, self.low)} and {jax.tree.map(jnp.shape, self.high)}."
            ) from None
        _check_positive("Uniform", "high - low", width)


Distribution = Normal | Uniform | Perturbation


class Sampling(eqx.Module):
    """A distribution for given hyperparameters, as a vector.

    - `centre`, `width`: the network's input is `(λ − centre) / width`.
    - `scale`: state of a local distribution's scale; `None` for a global one.
    """

    centre: Float[Array, " h"]
    width: Float[Array, " h"]
    scale: Any

    def sigma(self, distribution: Distribution) -> Float[Array, " h"]:
        """The standard deviations, or half the widths of a uniform distribution."""
        if isinstance(distribution, Perturbation):
            return distribution.value(self.scale)
        return self.width

    def draw(
        self, distribution: Distribution, around: Float[Array, " h"], count: int, key: Array
    ) -> Float[Array, "count h"]:
        """Hyperparameters, of a local distribution those `around` the current ones."""
        shape, dtype = (count, self.centre.size), self.centre.dtype
        if isinstance(distribution, Uniform):
            return self.centre + self.width * jax.random.uniform(key, shape, dtype, -1, 1)
        mean = around if is_local(distribution) else self.centre
        return mean + self.sigma(distribution) * jax.random.normal(key, shape, dtype)

    def away(self, distribution: Distribution, flat: Float[Array, " h"]) -> Float[Array, " h"]:
        """The distance from the centre, in units of the distribution's."""
        return (flat - self.centre) / self.sigma(distribution)


def is_local(distribution: Distribution) -> bool:
    """Whether it moves with the hyperparameters."""
    return isinstance(distribution, Perturbation)


def sampling(distribution: Distribution, hparams: PyTree) -> Sampling:
    """`ValueError` when the distribution does not fit `hparams`."""
    target = eqx.filter(hparams, eqx.is_inexact_array)
    match distribution:
        case Perturbation():
            flat = ravel_pytree(target)[0]
            scale = distribution.init(flat.size, flat.dtype)
            return Sampling(flat, distribution.value(scale), scale)
        case Normal():
            mean, std = distribution.mean, distribution.std
            return Sampling(_broadcast("mean", mean, target), _broadcast("std", std, target), None)
        case Uniform():
            low = _broadcast("low", distribution.low, target)
            high = _broadcast("high", distribution.high, target)
            return Sampling((low + high) / 2, (high - low) / 2, None)


def _broadcast(name: str, value: PyTree, target: PyTree) -> Array:
    """`value` as a vector with one entry for each hyperparameter."""
    if jax.tree_util.all_leaves([value]):
        value = jax.tree.map(lambda _: value, target)
    try:
        full = jax.tree.map(
            lambda v, t: jnp.broadcast_to(jnp.asarray(v, t.dtype), t.shape), value, target
        )
    except ValueError as error:
        raise ValueError(
            f"Hypernetwork: `{name}` of the distribution must be a number or fit hparams: "
            f"expected {jax.tree.map(jnp.shape, target)}, received "
            f"{jax.tree.map(jnp.shape, value)}."
        ) from error
    return ravel_pytree(full)[0]


def _numbers(owner: str, name: str, value: PyTree) -> dict[str, np.ndarray]:
    """The leaves as arrays, by their paths; those that are traced are left out."""
    return {
        jax.tree_util.keystr(path): require_numbers(
            owner, f"{name}{jax.tree_util.keystr(path)}", leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(value)
        if not isinstance(leaf, jax.core.Tracer)
    }


def _check_positive(owner: str, name: str, value: PyTree) -> None:
    for where, array in _numbers(owner, name, value).items():
        if not np.all(np.isfinite(array) & (array > 0)):
            raise ValueError(
                f"{owner}: `{name}`{where}: expected a positive number, received {array}."
            )
