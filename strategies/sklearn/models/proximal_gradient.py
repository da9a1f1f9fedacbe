"""Accelerated proximal gradient steps for smooth losses with an L1 penalty."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar


def soft_threshold(point: Array, size: Array) -> Array:
    """The proximal operator of `Σ size |w|`."""
    return jnp.sign(point) * jnp.maximum(jnp.abs(point) - size, 0.0)


def proximal_gradient(
    gradient: Callable[[Array], Array],
    threshold: Array,
    step: Scalar,
    start: Array,
    *,
    goal: Scalar,
    max_steps: int,
) -> tuple[Array, Scalar]:
    """Minimise a smooth function plus `Σ threshold |w|` by FISTA with adaptive restarts.

    Beck and Teboulle, SIAM J. Imaging Sci. 2, 2009; O'Donoghue and Candès, Found. Comput. Math. 15,
    2015 (the gradient scheme of restarts).

    **Arguments:**

    - `gradient`: of the smooth function.
    - `step`: at most one over its largest curvature.
    - `goal`: stop at a fixed-point residual of this norm.
    - `max_steps`: at most so many steps.

    **Returns:** the minimiser, and the fixed-point residual's norm.
    """
    sizes = step * threshold

    def body(carry: tuple) -> tuple:
        w, z, t, _, count = carry
        moved = soft_threshold(z - step * gradient(z), sizes)
        back = z - moved
        uphill = jnp.sum(back * (moved - w)) > 0
        t = jnp.where(uphill, 1.0, t)
        later = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * t**2)) / 2)
        pushed = moved + jnp.where(uphill, 0.0, (t - 1) / later) * (moved - w)
        return moved, pushed, later, jnp.linalg.norm(back) / step, count + 1

    first = (start, start, jnp.ones_like(step), jnp.full_like(step, jnp.inf), 0)
    found = jax.lax.while_loop(lambda c: (c[3] > goal) & (c[4] < max_steps), body, first)
    return found[0], found[3]
