"""Newton's method for a linear predictor, and the adjoint system at its end, in one loop.

The adjoint system has the matrix of a Newton step and another right-hand side. So it is the loop's
last step: one solver in the program, which compiles in a fraction of the time of two.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from strategies.sklearn.models.columns import Columns
from strategies.sklearn.models.conjugate_gradients import Map, conjugate_gradients

# Parts of a Newton step that are tried at once.
_PARTS = (1.0, 0.5, 0.125, 0.0156, 0.0005)
# Relative accuracy of a Newton step far from the minimum.
_LOOSE = 0.1
_MOST_PRODUCTS = 2000
# What stands for the penalty of a parameter without one, in a preconditioner.
_FREE = 1e-8
# The largest matrix whose eigenvectors are worth their time.
_MODES = 256

#: A system's solution for a right-hand side to an accuracy, and whether the matrix is bad.
Solve = Callable[[Array, Scalar | float], tuple[Array, Array]]


class Penalty(NamedTuple):
    """A quadratic penalty.

    - `product`: its gradient, which is linear.
    - `diagonal`: of its Hessian, nearly.
    """

    product: Map
    diagonal: Float[Array, "p1 m"]


class Hessians(NamedTuple):
    """Systems in the Hessian of a loss of the predictor beside a quadratic penalty.

    One output and few parameters: by factorisation. Otherwise by conjugate gradients, which are
    preconditioned by the Hessian that the loss would have if all outputs had their mean curvature
    at a sample, if parameters are few, or by the diagonal.
    """

    columns: Columns
    slope: Callable[[Float[Array, "n m"]], Float[Array, "n m"]]
    penalty: Penalty

    def at(self, predictor: Float[Array, "n m"], mask: Array | None = None) -> Solve:
        """Where the predictor is this; parameters outside of a mask have an identity."""
        columns, penalty = self.columns, self.penalty

        def bend(change: Array) -> Array:
            return jax.jvp(self.slope, (predictor,), (change,))[1]

        if predictor.shape[1] == 1 and columns.small:
            matrix = columns.gram(bend(jnp.ones_like(predictor))[:, 0])
            size = len(matrix)
            matrix += jax.vmap(penalty.product, 1, 1)(jnp.eye(size)[:, :, None])[:, :, 0]
            if mask is not None:
                matrix = jnp.where(mask * mask.T, matrix, jnp.eye(size))
            factor = jnp.linalg.cholesky(matrix)
            bad = ~jnp.all(jnp.isfinite(factor))
            return lambda rhs, tol: (jax.scipy.linalg.cho_solve((factor, True), rhs), bad)

        keep = jnp.ones_like(penalty.diagonal) if mask is None else mask.astype(predictor.dtype)

        def product(v: Array) -> Array:
            inside = keep * v
            moved = columns.adjoint(bend(columns.times(inside))) + penalty.product(inside)
            return keep * moved + (1.0 - keep) * v

        # A loss couples outputs of one sample only.
        units = jnp.eye(predictor.shape[1])
        each = jax.vmap(lambda e: bend(jnp.broadcast_to(e, predictor.shape)) @ e, out_axes=1)(units)
        if columns.small and len(keep) <= _MODES and mask is None:
            root = 1.0 / jnp.sqrt(penalty.diagonal[:, :1] + _FREE)
            values, vectors = jnp.linalg.eigh(root * columns.gram(jnp.mean(each, axis=1)) * root.T)
            vectors = root * vectors
            # The same for all outputs: sums over outputs, which logits have free, stay zero.
            level = jnp.maximum(values, 0.0)[:, None] + 1.0

            def precondition(r: Array) -> Array:
                return vectors @ ((vectors.T @ r) / level)
        else:
            whole = keep * (columns.squares(each) + penalty.diagonal) + (1.0 - keep)

            def precondition(r: Array) -> Array:
                return r / whole

        def solve(rhs: Array, tol: Scalar | float) -> tuple[Array, Array]:
            return conjugate_gradients(
                product, rhs, precondition, tol=tol, max_steps=_MOST_PRODUCTS
            )

        return solve


class Trained(NamedTuple):
    """Where Newton's method ended.

    - `params`: the minimiser.
    - `adjoint`: the solution of the adjoint system there.
    - `correction`: what is to be taken from a criterion at `params` for that of the minimiser, up
      to second order: the adjoint times the gradient that is left.
    - `residual`: the gradient's norm, relative to that at the start.
    - `bad`: whether the Hessian was not positive definite there.
    """

    params: Float[Array, "p1 m"]
    adjoint: Float[Array, "p1 m"]
    correction: Scalar
    residual: Scalar
    bad: Array


def newton(
    loss: Callable[[Float[Array, "n m"]], Scalar],
    columns: Columns,
    penalty: Penalty,
    pull: Map,
    start: Float[Array, "p1 m"],
    cold: Float[Array, "p1 m"],
    *,
    tol: float,
    max_steps: int,
) -> Trained:
    """Minimise a convex loss of the predictor beside a quadratic penalty.

    **Arguments:**

    - `loss`: of the predictors of all samples.
    - `pull`: right-hand side of the adjoint system, at given parameters.
    - `start`: where to begin; `cold`: parameters without features.
    - `tol`: stop at a gradient of so much of that at `cold`; also the adjoint system's residual.
    - `max_steps`: at most so many steps.
    """
    slope = jax.grad(loss)
    parts = jnp.asarray(_PARTS, start.dtype)
    hessians = Hessians(columns, slope, penalty)

    def gradient(w: Array, predictor: Array) -> Array:
        return columns.adjoint(slope(predictor)) + penalty.product(w)

    whole = jnp.linalg.norm(gradient(cold, columns.times(cold)))

    def body(carry: tuple) -> tuple:
        w, _, lowest, before, fell, _, _, count, _ = carry
        predictor = columns.times(w)
        down = gradient(w, predictor)
        size = jnp.linalg.norm(down)
        # Near the minimum losses drown in rounding: there the gradient decides.
        stuck = ~fell & ~(size < before)
        done = (size <= tol * whole) | stuck | (count >= max_steps) | ~jnp.isfinite(size)
        step, bad = hessians.at(predictor)(
            jnp.where(done, pull(w), down),
            jnp.where(done, tol, jnp.minimum(_LOOSE, size / whole)),
        )
        change, pushed = columns.times(step), penalty.product(step)
        linear, square = jnp.sum(w * pushed), jnp.sum(step * pushed)
        here = 0.5 * jnp.sum(w * penalty.product(w))

        def along(t: Scalar) -> Scalar:
            return loss(predictor - t * change) + here - t * linear + 0.5 * t**2 * square

        values = jax.vmap(along)(parts)
        full = values[0] <= lowest + 1e-12 * jnp.abs(lowest)
        best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        chosen = jnp.where(full, 0, best)
        fell = values[chosen] < lowest
        moved = jnp.where(done | ~(full | fell), w, w - parts[chosen] * step)
        lowest = jnp.minimum(values[chosen], lowest)
        return moved, step, lowest, size, fell, bad, done, count + 1, jnp.sum(step * down)

    false = jnp.zeros((), bool)
    value = loss(columns.times(start)) + 0.5 * jnp.sum(start * penalty.product(start))
    begin = (start, start, value, jnp.full_like(value, jnp.inf), ~false, false, false, 0, value)
    found = jax.lax.while_loop(lambda carry: ~carry[6], body, begin)
    return Trained(found[0], found[1], found[8], found[3] / whole, found[5])
