"""Stochastic regularisers and augmentations whose strength is an array.

What self-tuning tunes must be allowed to differ from example to example and to change without
recompilation: every function here takes its strength as a traced number, for one example, and is
meant to be `vmap`-ed over a batch. None passes a derivative with respect to a strength that it
only samples with (`dropout`, `shift`, `cutout`): their effect reaches the outer loss through the
learned response.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar


def dropout(x: Array, rate: float | Scalar, key: Array) -> Array:
    """Set each entry to zero with probability `rate`, and scale the others by `1 / (1 − rate)`."""
    keep = 1 - jax.lax.stop_gradient(rate)
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)


def set_dropout(model: PyTree, rates: Any) -> PyTree:
    """The model with the rates of its `equinox.nn.Dropout` layers replaced, in order.

    **Arguments:** `model`: any pytree. `rates`: one number for all layers, or a vector with one
    entry a layer; traced numbers are fine.

    Raises `ValueError` when there is no such layer or the number of rates differs from theirs.
    """

    def is_dropout(node: Any) -> bool:
        return isinstance(node, eqx.nn.Dropout)

    nodes, structure = jax.tree.flatten(model, is_leaf=is_dropout)
    found = [index for index, node in enumerate(nodes) if is_dropout(node)]
    if jnp.ndim(rates) == 0:
        rates = [rates] * len(found)
    if not found:
        raise ValueError("set_dropout: expected a model with Dropout layers, received none.")
    if len(rates) != len(found):
        raise ValueError(
            f"set_dropout: expected {len(found)} rates for the model's Dropout layers, received "
            f"{len(rates)}."
        )
    for index, rate in zip(found, rates, strict=True):
        nodes[index] = eqx.tree_at(lambda layer: layer.p, nodes[index], rate)
    return jax.tree.unflatten(structure, nodes)


def input_noise(x: Array, std: float | Scalar, key: Array) -> Array:
    """Add Gaussian noise of standard deviation `std`."""
    return x + std * jax.random.normal(key, x.shape, x.dtype)


def smooth_labels(
    label: Array, classes: int, smoothing: float | Scalar
) -> Float[Array, " classes"]:
    """One-hot targets mixed with the uniform distribution: `(1 − s) onehot + s / classes`."""
    return (1 - smoothing) * jax.nn.one_hot(label, classes) + smoothing / classes


def shift(
    image: Float[Array, "channels height width"], size: float | Scalar, key: Array
) -> Float[Array, "channels height width"]:
    """Move an image by up to `size` pixels in each direction, uniformly, with zeros moved in.

    Fractions of a pixel are interpolated linearly, so that small sizes have an effect.
    """
    down, right = jax.lax.stop_gradient(size) * jax.random.uniform(key, (2,), minval=-1, maxval=1)
    return _shift(_shift(image, down, axis=1), right, axis=2)


def brightness(image: Array, strength: float | Scalar, key: Array) -> Array:
    """Multiply an image by a factor drawn uniformly from `[1 − strength, 1 + strength]`."""
    return image * (1 + strength * jax.random.uniform(key, (), image.dtype, -1, 1))


def cutout(
    image: Float[Array, "channels height width"],
    length: float | Scalar,
    holes: float | Scalar,
    key: Array,
    *,
    most: int,
) -> Float[Array, "channels height width"]:
    """Set `holes` squares of side `length` pixels to zero, at random places.

    **Arguments:** `holes`: how many, a whole number up to `most` (static); holes may overlap and
    reach over the border.
    """
    _, height, width = image.shape
    places = jax.random.uniform(key, (most, 2)) * jnp.array([height, width])
    half = jax.lax.stop_gradient(length) / 2
    rows = jnp.abs(jnp.arange(height)[None] + 0.5 - places[:, :1]) < half
    columns = jnp.abs(jnp.arange(width)[None] + 0.5 - places[:, 1:]) < half
    active = jnp.arange(most) < jax.lax.stop_gradient(holes)
    hidden = rows[:, :, None] & columns[:, None, :] & active[:, None, None]
    return jnp.where(jnp.any(hidden, axis=0), 0, image)


def _shift(image: Array, offset: float | Scalar, axis: int) -> Array:
    # As a product with a matrix that has two entries in a row: faster than gathering pixels.
    places = jnp.arange(image.shape[axis], dtype=image.dtype)
    weights = jax.nn.relu(1 - jnp.abs(places[:, None] - offset - places))
    return weights @ image if axis == 1 else image @ weights.T
