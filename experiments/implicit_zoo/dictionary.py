"""Task-driven dictionary learning: sparse codes of images, differentiated in the dictionary.

An elastic net for each image, solved by proximal gradient steps (Mairal, Bach & Ponce 2012; section
4.3 of Blondel et al. 2022). Images are rows of scikit-learn's digits.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from sklearn.datasets import load_digits

from experiments.implicit_zoo.member import Member

IMAGES, ATOMS = 8, 6
L1, L2 = 0.2, 0.1
ITERATIONS = 6400


def members(seed: int) -> list[Member]:
    """Codes of a few images; the hyperparameters are the atoms."""
    rng = np.random.default_rng(seed)
    pixels = load_digits().data / 16
    rows = rng.choice(len(pixels), IMAGES + ATOMS, replace=False)
    images = pixels[rows[:IMAGES]]
    atoms = pixels[rows[IMAGES:]]
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    size = 0.9 / float(np.linalg.eigvalsh(atoms @ atoms.T)[-1] + L2)

    def step(codes: Array, atoms: Array) -> Array:
        slope = (codes @ atoms - images) @ atoms.T + L2 * codes
        moved = codes - size * slope
        return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - size * L1, 0)

    return [
        Member(
            name="dictionary learning",
            residual=lambda codes, atoms: codes - step(codes, atoms),
            theta=jnp.asarray(atoms),
            start=np.zeros((IMAGES, ATOMS)),
            advance=step,
            iterations=ITERATIONS,
        )
    ]
