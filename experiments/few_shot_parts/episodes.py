"""Tasks drawn at random: five characters, a drawing of each to learn from, others to test on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

WAYS, SHOTS, QUERIES = 5, 1, 5


class Episodes(NamedTuple):
    """Drawings of several tasks.

    - `known`: those to learn from, `(tasks, 5 classes, 1, pixels)`.
    - `asked`: those to be classified, `(tasks, 5 classes, 5, pixels)`.
    """

    known: Float[Array, "t w s p"]
    asked: Float[Array, "t w q p"]


class Places(NamedTuple):
    """Where the drawings of tasks are in an array of characters.

    - `character`: one for each class, `(..., tasks, 5)`.
    - `drawing`: six of it, `(..., tasks, 5, 6)`.
    """

    character: Int[np.ndarray, "... t w"]
    drawing: Int[np.ndarray, "... t w d"]

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: tuple[int, int], *number: int) -> "Places":
        """Tasks at random, `number` of them, from `shape = (characters, drawings)`."""
        characters, drawings = shape

        def chosen(wanted: int, of: int, *times: int) -> np.ndarray:
            # The places of the smallest of so many numbers: a draw without replacement.
            return rng.random((*times, of)).argpartition(wanted)[..., :wanted].astype(np.int32)

        return cls(
            chosen(WAYS, characters, *number), chosen(SHOTS + QUERIES, drawings, *number, WAYS)
        )

    def episodes(self, characters: Float[Array, "c d p"]) -> Episodes:
        """The drawings in these places."""
        pictures = characters[self.character[..., None], self.drawing]
        return Episodes(pictures[..., :SHOTS, :], pictures[..., SHOTS:, :])


def loss(scores: Float[Array, "t w s w"]) -> Scalar:
    """Cross-entropy of the five classes, summed over tasks and meant over their pictures."""
    right = jnp.einsum("twsw->tws", jax.nn.log_softmax(scores))
    return -jnp.sum(jnp.mean(right, axis=(1, 2)))


def accuracy(scores: Float[Array, "t w s w"]) -> Float[Array, " t"]:
    """Share of pictures that get the highest score for their class, by task."""
    guesses = jnp.argmax(scores, axis=-1)
    return jnp.mean(guesses == jnp.arange(WAYS)[None, :, None], axis=(1, 2))
