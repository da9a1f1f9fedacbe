"""Matching networks: each drawing that is known votes for its class, weighted by similarity.

Attention by cosines (Vinyals et al. 2016, arXiv:1606.04080), here over a temperature that is
learnt, without the recurrent network of the full form, in which features depend on the whole task.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.few_shot_parts import encoder
from experiments.few_shot_parts.episodes import Episodes
from experiments.few_shot_parts.method import Method

# Of 0.003, 0.01, 0.03, 0.1 and 0.3 the best on another split of the alphabets.
TEMPERATURE = 0.03


def initialise(key: Array) -> PyTree:
    """The encoder, and the logarithm of the temperature."""
    return {"layers": encoder.initialise(key), "log_temperature": jnp.float32(np.log(TEMPERATURE))}


def scores(weights: PyTree, episodes: Episodes) -> Array:
    """Logarithms of the classes' shares of the attention."""
    known, asked = (
        encoder.encode(weights["layers"], pictures) / encoder.LENGTH for pictures in episodes
    )
    cosines = jnp.einsum("twqf,tcsf->twqcs", asked, known)
    similarity = cosines / jnp.exp(weights["log_temperature"])
    by_class = jax.nn.logsumexp(similarity, axis=-1)
    return jax.nn.log_softmax(by_class, axis=-1)


METHOD = Method(initialise, scores)
