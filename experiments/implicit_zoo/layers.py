"""Layers that are solved for: a deep equilibrium (Bai et al. 2019) and the inverse of a flow.

The inverse of `y = x + A tanh(B x + c)` has no formula; its derivative is that of a root (as in
smooth normalising flows, Köhler et al. 2021).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.implicit_zoo.member import Member

UNITS, INPUTS = 16, 5
ITERATIONS = 160


def members(seed: int) -> list[Member]:
    """Both layers."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int, norm: float) -> Array:
        entries = rng.normal(size=shape)
        return jnp.asarray(norm * entries / np.linalg.norm(entries, 2))

    given, output = rng.normal(size=INPUTS), rng.normal(size=UNITS)

    def layer(z: Array, theta: PyTree) -> Array:
        return jnp.tanh(theta["W"] @ z + theta["U"] @ given + theta["b"])

    def flow(x: Array, theta: PyTree) -> Array:
        return x + theta["A"] @ jnp.tanh(theta["B"] @ x + theta["c"])

    return [
        Member(
            name="deep equilibrium",
            residual=lambda z, theta: z - layer(z, theta),
            theta={
                "W": matrix(UNITS, UNITS, norm=0.7),
                "U": matrix(UNITS, INPUTS, norm=1.0),
                "b": jnp.asarray(0.1 * rng.normal(size=UNITS)),
            },
            start=np.zeros(UNITS),
            advance=layer,
            iterations=ITERATIONS,
        ),
        Member(
            name="inverse function",
            residual=lambda x, theta: flow(x, theta) - output,
            theta={
                "A": matrix(UNITS, UNITS, norm=0.8),
                "B": matrix(UNITS, UNITS, norm=0.8),
                "c": jnp.asarray(0.3 * rng.normal(size=UNITS)),
            },
            start=np.zeros(UNITS),
            advance=lambda x, theta: x - (flow(x, theta) - output),
            iterations=ITERATIONS,
        ),
    ]
