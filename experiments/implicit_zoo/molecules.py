"""Molecular dynamics: how packed soft spheres move when the diameter of half of them changes.

Spheres of two sizes in a periodic box repel each other where they overlap, and are relaxed by FIRE
(Bitzek et al. 2006; section 4.4 of Blondel et al. 2022). Translations of the whole cost nothing, so
that the Hessian is singular; conjugate gradient solves what is consistent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxtyping import Array, Float

from experiments.implicit_zoo.member import Member
from hypergrad import CG

SPHERES = 20
#: Share of the box that the disks would cover without overlap: jammed, few of them are loose.
PACKING = 1.0
#: Time step of FIRE at most; a sphere with six contacts swings with a period of about 3.
LONGEST = 0.3
ITERATIONS = 3200


class Fire(NamedTuple):
    """Positions, velocities, time step, friction, steps since the last stop."""

    x: Float[Array, "n 2"]
    v: Float[Array, "n 2"]
    dt: Float[Array, ""]
    friction: Float[Array, ""]
    downhill: Float[Array, ""]


def energy(x: Float[Array, "n 2"], ratio: Float[Array, ""], side: float) -> Float[Array, ""]:
    """`Σ (1 - r/σ)² / 2` over pairs that overlap; a half of the spheres has diameter `ratio`."""
    diameters = jnp.where(jnp.arange(len(x)) < len(x) // 2, 1.0, ratio)
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] - x[second]
    apart = apart - side * jnp.round(jax.lax.stop_gradient(apart) / side)
    distance = jnp.sqrt(jnp.sum(apart**2, axis=1))
    sigma = 0.5 * (diameters[first] + diameters[second])
    return 0.5 * jnp.sum(jnp.maximum(1 - distance / sigma, 0) ** 2)


def begin(x: Float[Array, "n 2"]) -> Fire:
    """At rest."""
    return Fire(x, jnp.zeros_like(x), jnp.asarray(0.1), jnp.asarray(0.1), jnp.zeros(()))


def members(seed: int) -> list[Member]:
    """A packing; the hyperparameter is the diameter of the larger half."""
    rng = np.random.default_rng(seed)
    ratio = 1.4
    side = float(np.sqrt(np.pi / 4 * SPHERES / 2 * (1 + ratio**2) / PACKING))

    def potential(x: Array, ratio: Array) -> Array:
        return energy(x, ratio, side)

    def advance(state: Fire, ratio: Array) -> Fire:
        # Velocities turn towards the force; uphill everything stops and the time step shrinks.
        force = -jax.grad(potential)(state.x, ratio)
        v = state.v + state.dt * force
        uphill = jnp.vdot(force, v) <= 0
        size = jnp.sqrt(jnp.sum(v**2) / jnp.maximum(jnp.sum(force**2), 1e-300))
        v = jnp.where(uphill, 0, (1 - state.friction) * v + state.friction * size * force)
        settled = state.downhill > 5
        dt = jnp.where(settled, jnp.minimum(1.1 * state.dt, LONGEST), state.dt)
        return Fire(
            state.x + state.dt * v,
            v,
            jnp.where(uphill, 0.5 * state.dt, dt),
            jnp.where(uphill, 0.1, jnp.where(settled, 0.99 * state.friction, state.friction)),
            jnp.where(uphill, 0.0, state.downhill + 1),
        )

    return [
        Member(
            name="soft spheres, FIRE",
            residual=jax.grad(potential),
            theta=jnp.asarray(ratio),
            start=side * rng.uniform(size=(SPHERES, 2)),
            advance=advance,
            iterations=ITERATIONS,
            begin=begin,
            point=lambda state: state.x,
            loss=potential,
            linear=CG(tol=1e-11, max_steps=500),
            theirs=lambda product, b: jaxopt.linear_solve.solve_cg(
                product, b, tol=1e-11, maxiter=500
            ),
        )
    ]
