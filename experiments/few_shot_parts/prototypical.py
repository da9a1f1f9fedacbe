"""Prototypical networks: a class is the mean of its features, and the closest one is chosen.

By squared Euclidean distances (Snell, Swersky and Zemel 2017, arXiv:1703.05175), here divided by a
temperature that is learnt.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.few_shot_parts import encoder
from experiments.few_shot_parts.episodes import Episodes
from experiments.few_shot_parts.method import Method

# Of 0.2, 0.7, 2, 6.4 and 20 the best on another split of the alphabets.
TEMPERATURE = 2.0


def initialise(key: Array) -> PyTree:
    """The encoder, and the logarithm of the temperature."""
    return {
        "layers": encoder.initialise(key),
        "log_temperature": jnp.float32(np.log(TEMPERATURE)),
    }


def scores(weights: PyTree, episodes: Episodes) -> Array:
    """Minus the distances from the classes' means."""
    known, asked = (encoder.encode(weights["layers"], pictures) for pictures in episodes)
    means = jnp.mean(known, axis=2)
    distances = jnp.sum((asked[:, :, :, None] - means[:, None, None]) ** 2, axis=-1)
    return -distances / jnp.exp(weights["log_temperature"])


METHOD = Method(initialise, scores)
