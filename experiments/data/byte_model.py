"""A language model over bytes: each byte from the few before it, by one hidden layer.

What is known of a byte is a vector for it and one for it and the byte before, so that most of the
million parameters are looked up and cost no multiplications (n-gram embeddings, as in Pagnoni et
al. 2024, arXiv:2412.09871; of pairs there are few enough for a table without hashing).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

BYTES, CONTEXT = 256, 8


def initial(seed: int, *, embedding: int = 16, hidden: int = 256) -> dict:
    """Parameters, layer by layer; pairs say nothing at first."""
    rng = np.random.default_rng(seed)
    inputs = CONTEXT * embedding

    def normal(*shape: int, scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    return {
        "embedding": {
            "bytes": normal(BYTES, embedding, scale=0.5),
            "pairs": jnp.zeros((BYTES**2, embedding), jnp.float32),
        },
        "hidden": {
            "weight": normal(inputs, hidden, scale=inputs**-0.5),
            "bias": jnp.zeros(hidden, jnp.float32),
        },
        "output": {
            "weight": normal(hidden, BYTES, scale=0.1),
            "bias": jnp.zeros(BYTES, jnp.float32),
        },
    }


def layer_of(name: str) -> str:
    """The layer of a parameter: a group for schedules."""
    return name.partition("/")[0]


def nats(params: dict, pieces: jax.Array) -> jax.Array:
    """Mean cross-entropy of a byte of pieces `(n, length)`, given the bytes before it."""
    table, at = params["embedding"], pieces.astype(jnp.int32)
    before = jnp.pad(at, ((0, 0), (1, 0)))[:, :-1]
    embedded = table["bytes"][at] + table["pairs"][BYTES * before + at]
    count = pieces.shape[1] - CONTEXT
    windows = jnp.concatenate(
        [embedded[:, offset : offset + count] for offset in range(CONTEXT)], axis=-1
    )
    hidden = jnp.tanh(windows @ params["hidden"]["weight"] + params["hidden"]["bias"])
    logits = hidden @ params["output"]["weight"] + params["output"]["bias"]
    scores = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(scores, at[:, CONTEXT:, None], axis=-1))


def loss(params: dict, hparams: object, pieces: jax.Array) -> jax.Array:
    """The same, as a loss of a bilevel problem."""
    return nats(params, pieces)


def bits_per_byte(params: dict, pieces: np.ndarray) -> float:
    """On held-out pieces."""
    return float(_nats(params, jnp.asarray(pieces))) / math.log(2)


_nats: Callable = jax.jit(nats)
