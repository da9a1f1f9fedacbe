"""Preconditioned conjugate gradients: a loop that compiles fast."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

Map = Callable[[Array], Array]


# Above this residual, relative to the right-hand side, what was found is no solution.
_FAR = 1e-3


def conjugate_gradients(
    product: Map, rhs: Array, precondition: Map, *, tol: Scalar | float, max_steps: int
) -> tuple[Array, Array]:
    """Solve a symmetric positive definite system.

    Hestenes and Stiefel, J. Res. Nat. Bur. Stand. 49, 1952.

    **Arguments:**

    - `tol`: stop at a residual of so much of the right-hand side, in the preconditioner's norm.
    - `max_steps`: at most so many products.

    **Returns:** the solution, and whether it is none: a direction of negative curvature was met, or
    the products were used up far from it.
    """

    def body(carry: tuple) -> tuple:
        v, r, d, rho, bad, count = carry
        moved = product(d)
        curvature = jnp.sum(d * moved)
        bad = bad | (curvature <= 0)
        step = jnp.where(bad, 0.0, rho / jnp.where(bad, 1.0, curvature))
        v, r = v + step * d, r - step * moved
        z = precondition(r)
        later = jnp.sum(r * z)
        return v, r, z + later / rho * d, later, bad, count + 1

    first = precondition(rhs)
    rho = jnp.sum(rhs * first)
    goal = tol**2 * rho

    def unfinished(carry: tuple) -> Array:
        _, _, _, rho, bad, count = carry
        return (rho > goal) & ~bad & (count < max_steps)

    begin = (jnp.zeros_like(rhs), rhs, first, rho, jnp.zeros((), bool), 0)
    found = jax.lax.while_loop(unfinished, body, begin)
    lost = ~(found[3] <= jnp.maximum(goal, _FAR**2 * rho))
    return found[0], found[4] | lost
