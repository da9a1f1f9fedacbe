"""Restarted GMRES for any square `A`.

Saad & Schultz, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
systems" (1986). Not lineax's: that one applies the operator to a vector of zeros first, takes a
right-hand side shorter than machine epsilon for solved, refuses bfloat16, and looks at the
residual only once in a whole restart.
"""

from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.system import Spectrum, check_stop, normalise, nothing_met


class GMRES(LinearSolver):
    """Generalised minimal residual; one product a step, memory for `restart + 1` vectors.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps, all restarts together. May be traced. Default 1000.
    - `restart`: steps after which the Krylov space is thrown away. Default 30.

    A cycle that reduces the residual by less than a part in 10⁴ ends the iteration: restarted GMRES
    stagnates for good where it stagnates once.
    """

    tol: float | Scalar = 1e-6
    max_steps: int | Int[Array, ""] = 1000
    restart: int = eqx.field(static=True, default=30)

    def __check_init__(self) -> None:
        check_stop("GMRES", self.tol, self.max_steps)
        if self.restart < 1:
            raise ValueError(f"GMRES: restart must be >= 1, got {self.restart}.")

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSolver.solve`."""
        system = normalise(operator, rhs, initial)
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps
        m = max(1, min(self.restart, vector.size(rhs)))
        columns = jnp.arange(m)

        def growing(c: _Arnoldi) -> Array:
            residual = jnp.abs(c.image[c.step])
            return (c.step < m) & (c.spent < self.max_steps) & (residual > self.tol) & ~c.stop

        def grow(c: _Arnoldi) -> _Arnoldi:
            j = c.step
            image = system.operator.mv(jax.tree.map(lambda leaf: leaf[j], c.basis))
            length = vector.norm(image)
            finite = jnp.isfinite(length)
            # Twice is enough (Giraud et al. 2005): classical Gram-Schmidt, orthogonal to rounding.
            h = _components(c.basis, image)
            w = vector.sub(image, _combine(c.basis, h))
            again = _components(c.basis, w)
            w = vector.sub(w, _combine(c.basis, again))
            h = h + again
            rest = vector.norm(w)
            ended = rest <= eps * length
            rest = jnp.where(ended, 0, rest)
            unit = vector.scale(1 / jnp.where(rest > 0, rest, 1), w)
            # One more Givens rotation, kept multiplied out with those before it.
            column = c.rotation @ h.at[j + 1].set(rest)
            top, below = column[j], column[j + 1]
            size = jnp.hypot(top, below)
            cosine = jnp.where(size > 0, top / size, 1)
            sine = jnp.where(size > 0, below / size, 0)
            upper, lower = c.rotation[j], c.rotation[j + 1]
            rotation = c.rotation.at[j].set(cosine * upper + sine * lower)
            rotation = rotation.at[j + 1].set(cosine * lower - sine * upper)
            column = column.at[j].set(size).at[j + 1].set(0)
            value = c.image[j]
            turned = c.image.at[j].set(cosine * value).at[j + 1].set(-sine * value)
            scale = jnp.maximum(jnp.max(jnp.abs(c.triangle)), length)
            good = finite & (size > 30 * eps * scale)
            new_basis = jax.tree.map(lambda leaf, v: leaf.at[j + 1].set(v), c.basis, unit)
            return _Arnoldi(
                step=jnp.where(good, j + 1, j),
                spent=c.spent + 1,
                basis=vector.where(good, new_basis, c.basis),
                triangle=jnp.where(good, c.triangle.at[:, j].set(column[:m]), c.triangle),
                rotation=jnp.where(good, rotation, c.rotation),
                image=jnp.where(good, turned, c.image),
                spectrum=c.spectrum.met(h[j]),
                stop=~good | ended,
                breakdown=~finite,
            )

        def unfinished(c: _Restart) -> Array:
            return (c.spent < self.max_steps) & (c.size > self.tol) & ~c.stop

        def cycle(c: _Restart) -> _Restart:
            unit = vector.scale(1 / c.size, c.residual)
            basis = jax.tree.map(
                lambda leaf: jnp.zeros((m + 1, *leaf.shape), leaf.dtype).at[0].set(leaf), unit
            )
            inner = jax.lax.while_loop(
                growing,
                grow,
                _Arnoldi(
                    step=jnp.zeros((), jnp.int32),
                    spent=c.spent,
                    basis=basis,
                    triangle=jnp.zeros((m, m), dtype),
                    rotation=jnp.eye(m + 1, dtype=dtype),
                    image=jnp.zeros(m + 1, dtype).at[0].set(c.size),
                    spectrum=c.spectrum,
                    stop=jnp.asarray(False),
                    breakdown=jnp.asarray(False),
                ),
            )
            used = columns < inner.step
            triangle = jnp.where(used[:, None] & used, inner.triangle, jnp.eye(m, dtype=dtype))
            y = jax.scipy.linalg.solve_triangular(triangle, jnp.where(used, inner.image[:m], 0))
            x = vector.axpy(1.0, _combine(inner.basis, jnp.append(y, 0)), c.x)
            # The residual lies in the space just built: no product is needed to know it.
            rest = inner.image[inner.step]
            residual = _combine(inner.basis, rest * inner.rotation[inner.step])
            size = jnp.abs(rest)
            return _Restart(
                spent=inner.spent,
                x=x,
                residual=residual,
                size=size,
                spectrum=inner.spectrum,
                stop=inner.stop | (size > (1 - 1e-4) * c.size),
                breakdown=inner.breakdown,
            )

        first = vector.norm(system.residual)
        start = _Restart(
            spent=jnp.zeros((), jnp.int32),
            x=system.start,
            residual=system.residual,
            size=first,
            spectrum=nothing_met(dtype),
            stop=first == 0,
            breakdown=jnp.asarray(False),
        )
        end = jax.lax.while_loop(unfinished, cycle, start)
        return system.solution(
            end.x,
            end.size,
            system.products + end.spent,
            nonpositive=end.spectrum.low <= 0,
            breakdown=end.breakdown,
            spectrum=end.spectrum,
        )


def _components(basis: PyTree, v: PyTree) -> Array:
    """`⟨basis_i, v⟩` for all i."""
    highest = jax.lax.Precision.HIGHEST
    parts = jax.tree.map(lambda b, a: jnp.tensordot(b, a, axes=a.ndim, precision=highest), basis, v)
    return reduce(jnp.add, jax.tree.leaves(parts))


def _combine(basis: PyTree, weights: Array) -> PyTree:
    """`Σ weights_i basis_i`."""
    highest = jax.lax.Precision.HIGHEST
    return jax.tree.map(
        lambda b: jnp.tensordot(weights.astype(b.dtype), b, axes=1, precision=highest), basis
    )


class _Arnoldi(eqx.Module):
    step: Array
    spent: Array
    basis: PyTree
    triangle: Array
    rotation: Array
    image: Array
    spectrum: Spectrum
    stop: Array
    breakdown: Array


class _Restart(eqx.Module):
    spent: Array
    x: PyTree
    residual: PyTree
    size: Array
    spectrum: Spectrum
    stop: Array
    breakdown: Array
