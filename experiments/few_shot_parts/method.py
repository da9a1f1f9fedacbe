"""A method for few shots: what is learnt across tasks, and how it classifies within one.

All train on the same episodes, by the same optimizer.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Scalar

from experiments.few_shot_parts.episodes import QUERIES, SHOTS, WAYS, Episodes, Places, loss

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3))


class Method(NamedTuple):
    """A way to learn from few drawings.

    - `initialise`: `key -> weights`, all that is shared by tasks.
    - `scores`: `(weights, episodes) -> (tasks, 5, 5, 5)`, of the drawings asked for, by class.
    - `gradient`: `(weights, episodes) -> gradient` of `query_loss`; by plain differentiation of the
      scores, if left out.
    """

    initialise: Callable[[Array], PyTree]
    scores: Callable[[PyTree, Episodes], Float[Array, "t w q w"]]
    gradient: Callable[[PyTree, Episodes], PyTree] | None = None

    def query_loss(self, weights: PyTree, episodes: Episodes) -> Scalar:
        """Mean cross-entropy of the drawings asked for."""
        return loss(self.scores(weights, episodes)) / len(episodes.asked)

    def operations(self, tasks: int, pixels: int) -> float:
        """Operations of a step, counted by the compiler in the derivative of the written-out loss.

        A loop's body is counted once, so that `scores` has to be without loops.
        """
        weights = jax.eval_shape(self.initialise, jax.random.key(0))
        shapes = [(tasks, WAYS, each, pixels) for each in (SHOTS, QUERIES)]
        episodes = Episodes(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        step = jax.jit(jax.grad(self.query_loss)).lower(weights, episodes)
        return float(step.compile().cost_analysis()["flops"])


def train(
    method: Method,
    weights: PyTree,
    characters: Float[Array, "c d p"],
    *,
    pieces: int,
    steps: int,
    tasks: int,
    rng: np.random.Generator,
) -> Iterator[PyTree]:
    """The weights after each of `pieces` times `steps` steps.

    Each step draws `tasks` tasks from `characters`. With generators of one seed, two methods get
    the same sequence of tasks.
    """
    gradient = method.gradient or jax.grad(method.query_loss)

    def step(carry: tuple, places: Places) -> tuple[tuple, None]:
        weights, moments = carry
        updates, moments = OPTIMIZER.update(gradient(weights, places.episodes(characters)), moments)
        return (optax.apply_updates(weights, updates), moments), None

    @jax.jit
    def advance(carry: tuple, places: Places) -> tuple:
        return jax.lax.scan(step, carry, places)[0]

    carry = (weights, OPTIMIZER.init(weights))
    for _ in range(pieces):
        drawn = [Places.draw(rng, characters.shape[:2], tasks) for _ in range(steps)]
        carry = advance(carry, jax.tree.map(lambda *each: np.stack(each), *drawn))
        yield carry[0]
