"""Newton's method with whole Hessians, for few parameters: a small program that compiles fast."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree, Scalar

# Steps along a Newton direction that are tried at once.
_HALVINGS = 12


def small_newton(
    loss: Callable[[PyTree], Scalar], start: PyTree, *, tol: float, max_steps: int
) -> PyTree:
    """Minimise a convex loss; each step is the best of the Newton step and its halvings.

    **Arguments:**

    - `tol`: stop at a gradient of so much of that at the start, or where no step is a descent.
    - `max_steps`: at most so many steps.
    """
    first, unravel = ravel_pytree(start)

    def value(w: jax.Array) -> Scalar:
        return loss(unravel(w))

    gradient, hessian = jax.grad(value), jax.hessian(value)
    sizes = 0.5 ** jnp.arange(_HALVINGS, dtype=first.dtype)

    def body(carry: tuple) -> tuple:
        w, lowest, slope, _, count = carry
        direction = jax.scipy.linalg.solve(hessian(w), slope, assume_a="pos")
        points = w - sizes[:, None] * direction
        values = jax.vmap(value)(points)
        chosen = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        # Near the minimum losses drown in rounding: there the Newton step is right.
        full = values[0] <= lowest + 1e-12 * jnp.abs(lowest)
        moved = jnp.where(full, points[0], points[chosen])
        better = full | (values[chosen] < lowest)
        after = gradient(moved)
        falls = jnp.linalg.norm(after) < jnp.linalg.norm(slope)
        descends = better & (falls | (values[chosen] < lowest))
        keep = jnp.where(descends, moved, w)
        return (
            keep,
            jnp.where(descends, value(moved), lowest),
            jnp.where(descends, after, slope),
            ~descends,
            count + 1,
        )

    slope = gradient(first)
    goal = tol * jnp.linalg.norm(slope)

    def unfinished(carry: tuple) -> jax.Array:
        _, _, slope, stuck, count = carry
        return (jnp.linalg.norm(slope) > goal) & ~stuck & (count < max_steps)

    begin = (first, value(first), slope, jnp.zeros((), bool), 0)
    return unravel(jax.lax.while_loop(unfinished, body, begin)[0])
