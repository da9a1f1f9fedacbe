"""Dataset distillation: weights of a classifier as a function of the images it is trained on.

One image for each class, and a classifier that is trained on them to the end (section 4.2 of
Blondel et al. 2022); at its solution no step of the training needs to be differentiated.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from sklearn.datasets import load_digits

from experiments.implicit_zoo.member import Member

CLASSES = 3
RIDGE, RATE = 0.1, 0.5
ITERATIONS = 1600


def members(seed: int) -> list[Member]:
    """The images start as the means of their classes, with some noise."""
    digits = load_digits()
    noise = np.random.default_rng(seed).normal(size=(CLASSES, digits.data.shape[1]))
    means = [digits.data[digits.target == c].mean(axis=0) / 16 for c in range(CLASSES)]
    images = np.stack(means) + 0.05 * noise

    def loss(w: Array, images: Array) -> Array:
        scores = jax.nn.log_softmax(images @ w)
        return -jnp.mean(jnp.diagonal(scores)) + 0.5 * RIDGE * jnp.sum(w**2)

    return [
        Member(
            name="distillation",
            residual=jax.grad(loss),
            theta=jnp.asarray(images),
            start=np.zeros((images.shape[1], CLASSES)),
            advance=lambda w, images: w - RATE * jax.grad(loss)(w, images),
            iterations=ITERATIONS,
            loss=loss,
        )
    ]
