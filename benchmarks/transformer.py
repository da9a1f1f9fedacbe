"""A language model of 100 million parameters in bfloat16, as a problem for `benchmarks.overhead`.

A decoder with tied embeddings and twelve blocks of width 768, on tokens of a random walk. The
weights are bfloat16; norms, softmax and losses are float32. The hyperparameters: one weight decay
for each tensor of each block, and one weight for each training sequence. It is differentiated at
random initial weights, where the Hessian is indefinite: the curvature is the Gauss-Newton matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from benchmarks.problems import Case
from hypergrad import BilevelProblem, GaussNewton
from hypergrad.linear.vector import widen

HEAD = 64
DECAY = 0.0
# With 5e-3 the series diverges on batches of a few tokens.
STEP = 5e-4


class Size(NamedTuple):
    """Of the model and of a batch."""

    layers: int = 12
    width: int = 768
    vocabulary: int = 20_480
    sequences: int = 8
    length: int = 256


SMALL = Size(layers=2, width=128, vocabulary=512, sequences=4, length=32)


def transformer(size: Size) -> Case:
    """The problem, at random weights."""
    rng = np.random.default_rng(0)
    params = initial(size, rng)
    decay = jax.tree.map(
        lambda w: jnp.full(w.shape[:1] + (1,) * (w.ndim - 1), DECAY, jnp.float32), params["blocks"]
    )
    hparams = {"decay": decay, "weights": jnp.zeros(size.sequences, jnp.float32)}
    inner_batch, outer_batch = (_walk(size, rng) for _ in range(2))
    curvature = GaussNewton(
        lambda p, h, tokens: logits(p, tokens[:, :-1]),
        weighted_loss,
        penalty,
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    name = f"transformer, {count / 1e6:.1f}M"
    problem = BilevelProblem(inner_loss, outer_loss)
    return Case(name, problem, params, hparams, inner_batch, outer_batch, curvature, STEP)


def initial(size: Size, rng: np.random.Generator) -> PyTree:
    """Weights, those of the blocks stacked."""

    def normal(*shape: int, scale: float) -> Array:
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32), jnp.bfloat16)

    n, d = size.layers, size.width
    return {
        "tokens": normal(size.vocabulary, d, scale=0.02),
        "positions": normal(size.length, d, scale=0.02),
        "norm": jnp.ones(d, jnp.bfloat16),
        "blocks": {
            "norms": jnp.ones((n, 2, d), jnp.bfloat16),
            "heads": normal(n, d, 3 * d, scale=d**-0.5),
            "joined": normal(n, d, d, scale=(2 * n * d) ** -0.5),
            "up": normal(n, d, 4 * d, scale=d**-0.5),
            "down": normal(n, 4 * d, d, scale=(8 * n * d) ** -0.5),
        },
    }


def logits(params: PyTree, tokens: Array, again: bool = False) -> Array:
    """Scores of the next token in float32, shape `(sequences, length, vocabulary)`.

    With `again` a backward pass runs each block again, and stores what enters it only.
    """
    h = params["tokens"][tokens] + params["positions"][: tokens.shape[1]]

    def block(h: Array, w: PyTree) -> tuple[Array, None]:
        before, after = w["norms"]
        h = h + _attention(_normalised(h, before), w["heads"]) @ w["joined"]
        return h + jax.nn.gelu(_normalised(h, after) @ w["up"]) @ w["down"], None

    h, _ = jax.lax.scan(jax.checkpoint(block) if again else block, h, params["blocks"])
    h = _normalised(h, params["norm"])
    return jnp.matmul(h, params["tokens"].T, preferred_element_type=jnp.float32)


def sequence_losses(scores: Array, tokens: Array) -> Array:
    """Mean cross-entropy of each sequence."""
    picked = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=2)[..., 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=2) - picked, axis=1)


def weighted_loss(scores: Array, hparams: PyTree, tokens: Array) -> Scalar:
    """The training loss of the scores."""
    return jnp.mean(jnp.exp(hparams["weights"]) * sequence_losses(scores, tokens))


def penalty(params: PyTree, hparams: PyTree) -> Scalar:
    """`½ Σ exp(λ) w²` over the blocks' tensors, the embeddings at the initial `λ`."""

    def squares(w: Array, log_decay: Array | float) -> Scalar:
        return 0.5 * jnp.sum(jnp.exp(log_decay) * widen(w) ** 2)

    blocks = jax.tree.map(squares, params["blocks"], hparams["decay"])
    others = [squares(w, DECAY) for name, w in params.items() if name != "blocks"]
    return sum(jax.tree.leaves((blocks, others)))


def inner_loss(params: PyTree, hparams: PyTree, tokens: Array) -> Scalar:
    """Weighted cross-entropy and penalty."""
    scores = logits(params, tokens[:, :-1])
    return weighted_loss(scores, hparams, tokens) + penalty(params, hparams)


def outer_loss(params: PyTree, hparams: PyTree, tokens: Array) -> Scalar:
    """Cross-entropy."""
    return jnp.mean(sequence_losses(logits(params, tokens[:, :-1]), tokens))


def _normalised(h: Array, scale: Array) -> Array:
    wide = widen(h)
    root = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    return (wide * root * scale).astype(h.dtype)


def _attention(h: Array, heads: Array) -> Array:
    """Causal attention before its output matrix."""
    split = (h @ heads).reshape(*h.shape[:-1], 3, -1, HEAD)
    query, key, value = jnp.moveaxis(split, -3, 0)
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * HEAD**-0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    shares = jax.nn.softmax(widen(scores), axis=-1).astype(h.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", shares, value).reshape(h.shape)


def _walk(size: Size, rng: np.random.Generator) -> Array:
    """Tokens that are each within seven of the one before, a batch of `length + 1`."""
    steps = rng.integers(-7, 8, (size.sequences, size.length + 1))
    steps[:, 0] = rng.integers(0, size.vocabulary, size.sequences)
    return jnp.asarray(np.cumsum(steps, axis=1) % size.vocabulary, jnp.int32)
