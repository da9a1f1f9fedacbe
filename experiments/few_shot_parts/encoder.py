"""The network below all methods: two hidden layers, features of one length."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SIDE, HIDDEN, FEATURES = 14, 128, 64
# Entries of the features are about one.
LENGTH = np.sqrt(FEATURES)

Layers = list[dict[str, Array]]


def initialise(key: Array) -> Layers:
    """Layers of 196-128-64."""
    sizes = (SIDE**2, HIDDEN, FEATURES)
    return [
        {"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros(b)}
        for k, a, b in zip(jax.random.split(key), sizes, sizes[1:], strict=False)
    ]


def encode(layers: Layers, pictures: Float[Array, "... p"]) -> Float[Array, "... f"]:
    """The features of pictures."""
    x = pictures
    for layer in layers:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return LENGTH * x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)
