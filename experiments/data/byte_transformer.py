"""A byte-level transformer of any width: heads of one size, normalised blocks, no gains.

Attention logits are divided by the size of a head and not by its root, as muP wants; the readout
begins at zero.
"""

import math

import jax
import jax.numpy as jnp
import optax

BYTES, HEAD = 256, 16
#: Of the hidden layer in a block, relative to the width.
WIDER = 4


def draw(width: int, layers: int, length: int, key: jax.Array) -> dict:
    """Parameters; matrices of size 1/√fan-in."""
    keys = iter(jax.random.split(key, 2 + 6 * layers))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / math.sqrt(shape[0])

    return {
        "embedding": {
            "byte": jax.random.normal(next(keys), (BYTES, width)),
            "position": jax.random.normal(next(keys), (length, width)),
        },
        "layers": [
            {
                "attention": {name: normal(width, width) for name in ("q", "k", "v", "out")},
                "mlp": {"up": normal(width, WIDER * width), "down": normal(WIDER * width, width)},
            }
            for _ in range(layers)
        ],
        "readout": jnp.zeros((width, BYTES)),
    }


def group_of(name: str) -> str:
    """The kind of layer that a parameter belongs to: a group of settings."""
    parts = name.split("/")
    return parts[2] if parts[0] == "layers" else parts[0]


def _normalised(h: jax.Array) -> jax.Array:
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)


def _attention(layer: dict, h: jax.Array) -> jax.Array:
    batch, length, width = h.shape
    shape = (batch, length, width // HEAD, HEAD)
    q, k, v = ((h @ layer[name]).reshape(shape) for name in ("q", "k", "v"))
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / HEAD
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    return jnp.einsum("bhlm,bmhd->blhd", weights, v).reshape(h.shape) @ layer["out"]


def nats(params: dict, pieces: jax.Array) -> jax.Array:
    """Mean cross-entropy of a byte, given those before it in its piece `(n, length + 1)`."""
    seen, following = pieces[:, :-1].astype(jnp.int32), pieces[:, 1:].astype(jnp.int32)
    h = params["embedding"]["byte"][seen] + params["embedding"]["position"]
    for layer in params["layers"]:
        h = h + _attention(layer["attention"], _normalised(h))
        h = h + jax.nn.gelu(_normalised(h) @ layer["mlp"]["up"]) @ layer["mlp"]["down"]
    logits = _normalised(h) @ params["readout"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()
