"""The dual of a multiclass support vector machine, by projected gradient and by mirror descent.

Rows of `x` lie on the simplex, and the penalty `exp(theta)` is the hyperparameter (section 4.1 of
Blondel et al. 2022). Two solvers, two fixed points, one solution.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.implicit_zoo.member import Member

ROWS, COLUMNS, CLASSES = 12, 30, 3
#: Iterations; mirror descent is slow where entries become zero.
PROJECTED, MIRRORED = 640, 32_000


def to_simplex(row: Float[Array, " k"]) -> Float[Array, " k"]:
    """The closest point of the simplex (by sorting)."""
    ordered = jnp.sort(row)[::-1]
    excess = (jnp.cumsum(ordered) - 1) / jnp.arange(1, row.size + 1)
    count = jnp.sum(ordered > excess)
    return jnp.maximum(row - excess[count - 1], 0)


def members(seed: int) -> list[Member]:
    """Both ways to solve it."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(ROWS, COLUMNS)) / np.sqrt(COLUMNS)
    labels = np.eye(CLASSES)[np.arange(ROWS) % CLASSES]
    gram = data @ data.T

    def slope(x: Array, theta: Array) -> Array:
        """Gradient of `|dataᵀ (labels - x)|² / (2 exp(theta)) + <x, labels>`."""
        return gram @ (x - labels) / jnp.exp(theta) + labels

    at = -0.5
    size = float(np.exp(at) / np.linalg.eigvalsh(gram)[-1])

    def projected(x: Array, theta: Array) -> Array:
        return jax.vmap(to_simplex)(x - size * slope(x, theta))

    def mirrored(x: Array, theta: Array) -> Array:
        # x exp(-step slope), normalised: without a logarithm, for which an entry must not vanish.
        tilted = x * jnp.exp(-1.5 * size * slope(x, theta))
        return tilted / jnp.sum(tilted, axis=1, keepdims=True)

    return [
        Member(
            name=name,
            residual=lambda x, theta, step=step: x - step(x, theta),
            theta=jnp.asarray(at),
            start=np.full((ROWS, CLASSES), 1 / CLASSES),
            advance=step,
            iterations=iterations,
        )
        for name, step, iterations in (
            ("SVM, projected gradient", projected, PROJECTED),
            ("SVM, mirror descent", mirrored, MIRRORED),
        )
    ]
