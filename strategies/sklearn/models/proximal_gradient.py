"""Accelerated proximal gradient steps for smooth losses with an L1 penalty."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.linear import vector


def soft_threshold(point: PyTree, size: PyTree) -> PyTree:
    """The proximal operator of `Σ size |w|`."""
    return jax.tree.map(lambda w, t: jnp.sign(w) * jnp.maximum(jnp.abs(w) - t, 0.0), point, size)


def proximal_gradient(
    smooth: Callable[[PyTree], Scalar],
    threshold: PyTree,
    step: Scalar,
    start: PyTree,
    *,
    tol: float,
    max_steps: int,
) -> PyTree:
    """Minimise `smooth(w) + Σ threshold |w|` by FISTA with adaptive restarts.

    Beck and Teboulle, SIAM J. Imaging Sci. 2, 2009; O'Donoghue and Candès, Found. Comput. Math. 15,
    2015 (the gradient scheme of restarts).

    **Arguments:**

    - `step`: at most one over the largest curvature of `smooth`.
    - `tol`: stop at a fixed-point residual of so much of the gradient at the start.
    - `max_steps`: at most so many steps.
    """
    sizes = vector.scale(step, threshold)
    gradient = jax.grad(smooth)

    def body(carry: tuple) -> tuple:
        w, z, t, _, count = carry
        moved = soft_threshold(vector.axpy(-step, gradient(z), z), sizes)
        back = vector.sub(z, moved)
        uphill = vector.vdot(back, vector.sub(moved, w)) > 0
        later = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        t, later = jnp.where(uphill, 1.0, t), jnp.where(uphill, 1.0, later)
        pushed = vector.axpy(jnp.where(uphill, 0.0, (t - 1) / later), vector.sub(moved, w), moved)
        return moved, pushed, later, vector.norm(back) / step, count + 1

    goal = tol * vector.norm(gradient(start))
    first = (start, start, jnp.ones_like(step), jnp.full_like(step, jnp.inf), 0)
    return jax.lax.while_loop(lambda c: (c[3] > goal) & (c[4] < max_steps), body, first)[0]


__all__ = ["proximal_gradient", "soft_threshold"]
