"""Truncated Neumann series, `A⁻¹ b ≈ step · Σ_{j ≤ K} (I − step · A)ʲ b`.

Lorraine, Vicol and Duvenaud, "Optimizing Millions of Hyperparameters by Implicit Differentiation"
(2020). With `K` products it has `K + 1` terms, and at a stationary point of the inner loss it is
the derivative of `K + 1` steps of gradient descent of that step size.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.expected import require_count, require_positive
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.random import random_like
from hypergrad.linear.solution import LinearSolution, Spectrum, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import Outcome

# Consecutive growths of the term that are taken for divergence. Terms of a symmetric operator
# shrink monotonically when the series converges; others may grow for a while first.
_GROWTHS = 3


class Neumann(LinearSolver):
    """A fixed number of terms of the Neumann series.

    **Arguments:**

    - `products`: operator products `K >= 0` spent on the series; it has `K + 1` terms. Default 10.
    - `step`: the factor of the series. It converges for a positive-definite operator when
      `0 < step < 2 / λ_max`. `None` (the default) takes `1 / (1.1 λ)` with `λ` from
      `power_iterations` further products.
    - `power_iterations`: products of the power iteration. Default 10; unused with a given step.
    - `key`: random key of the power iteration's start; a fixed one by default.

    Divergence (the term grows three times running, or ends longer than it began) is reported as
    `breakdown` and the partial sum of smallest residual is returned. `residual` is an upper bound
    for a converging series of a symmetric operator: the residual of the sum without its last term
    (NaN for `products = 0`).

    A start (`initial`) is not used: the answer depends on `b` alone, whatever was solved before.
    """

    products: int = eqx.field(static=True, default=10)
    step: Array | float | None = None
    power_iterations: int = eqx.field(static=True, default=10)
    key: Array | None = None

    def __check_init__(self) -> None:
        require_count("Neumann", "products", self.products, 0)
        require_positive("Neumann", "step", self.step)
        if self.step is None:
            require_count("Neumann without a step", "power_iterations", self.power_iterations)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`; a start is not used."""
        product, term = system.operator.mv, system.rhs
        dtype = system.norm.dtype
        first = system.norm**2
        spent = jnp.zeros((), jnp.int32)
        if self.step is None:
            key = jax.random.key(0) if self.key is None else self.key
            largest, used = power_iteration(
                system.unpacked, system.packing.like, self.power_iterations, key
            )
            step = 1 / (1.1 * largest.astype(dtype))
            spent = jnp.where(first > 0, used, 0)
        else:
            step = jnp.asarray(self.step, dtype)
        usable = jnp.isfinite(step)

        def unfinished(c: _Sum) -> Array:
            return (c.count < self.products) & c.converging & (c.square > 0)

        def body(c: _Sum) -> _Sum:
            image = product(c.term)
            term = vector.axpy(-step, image, c.term)
            square = vector.vdot(term, term)
            # Where it is not finite the series ends and the best sum is the answer.
            finite = jnp.isfinite(square)
            growths = jnp.where(square > c.square, c.growths + 1, 0)
            better = finite & (square <= c.best_square)
            total = vector.axpy(1.0, term, c.total)
            return _Sum(
                count=c.count + 1,
                total=total,
                term=term,
                square=square,
                best=vector.where(better, total, c.best),
                best_square=jnp.where(better, square, c.best_square),
                growths=growths,
                converging=finite & (growths < _GROWTHS),
                spectrum=c.spectrum.met(vector.vdot(c.term, image) / c.square),
            )

        start = _Sum(
            count=jnp.zeros((), jnp.int32),
            total=term,
            term=term,
            square=first,
            best=term,
            best_square=first,
            growths=jnp.zeros((), jnp.int32),
            converging=usable & jnp.isfinite(first),
            spectrum=nothing_met(dtype),
        )
        end = jax.lax.while_loop(unfinished, body, start)
        diverged = (~end.converging | (end.square > first)) & (first != 0)
        x = vector.scale(jnp.where(usable, step, 0), vector.where(diverged, end.best, end.total))
        known = jnp.sqrt(jnp.where(diverged, end.best_square, end.square))
        finite = usable & jnp.isfinite(end.square)
        outcome = Outcome.where(finite, Outcome.diverged, Outcome.not_finite)
        return system.solution(
            x,
            jnp.where(end.count > 0, known, jnp.nan),
            spent + end.count,
            Outcome.where(diverged, outcome, Outcome.approximate),
            end.spectrum,
        )


class _Sum(eqx.Module):
    count: Array
    total: PyTree
    term: PyTree
    square: Array
    best: PyTree
    best_square: Array
    growths: Array
    converging: Array
    spectrum: Spectrum


def power_iteration(
    operator: LinearOperator, like: PyTree, iterations: int, key: Array
) -> tuple[Scalar, Int[Array, ""]]:
    """Largest `‖A v‖ / ‖v‖` met in power iteration from a random start: a lower bound of `‖A‖`.

    **Arguments:**

    - `operator`: the map `A`.
    - `like`: a vector of its space (shapes and dtypes only).
    - `iterations`: number of products, at least 1.
    - `key`: random key of the start.

    **Returns:**

    The estimate (NaN as soon as a product is not finite), and the products spent.
    """
    drawn = random_like(jax.random.normal, key, like, 1)

    def unit(v: PyTree) -> tuple[PyTree, Scalar]:
        size = vector.norm(v)
        return vector.scale(1 / jnp.where(size > 0, size, 1), v), size

    def body(_: Array, carry: tuple) -> tuple:
        v, top = carry
        v, size = unit(operator.mv(v))
        return v, jnp.maximum(top, size)

    v, size = unit(jax.tree.map(lambda a: a[0], drawn))
    _, top = jax.lax.fori_loop(0, iterations, body, (v, jnp.zeros_like(size)))
    return top, jnp.asarray(iterations, jnp.int32)
