"""Restarted GMRES for any square `A`.

Saad & Schultz, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
systems" (1986). Not lineax's: that one applies the operator to a vector of zeros first, takes a
right-hand side shorter than machine epsilon for solved, refuses bfloat16, and looks at the
residual only once in a whole restart.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.expected import require_count
from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.solution import LinearSolution, Spectrum, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import RUNNING, Outcome


class GMRES(IterativeSolver):
    """Generalised minimal residual; one product a step, memory for `restart + 1` vectors.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps, all restarts together. May be traced. Default 1000.
    - `restart`: steps after which the Krylov space is thrown away. Default 30.

    A cycle that reduces the residual by less than a part in 10⁴ ends the iteration: restarted GMRES
    stagnates for good where it stagnates once.
    """

    restart: int = eqx.field(static=True, default=30)

    def __check_init__(self) -> None:
        require_count("GMRES", "restart", self.restart)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps
        m = max(1, min(self.restart, vector.size(system.rhs)))
        columns = jnp.arange(m)

        def growing(c: _Arnoldi) -> Array:
            residual = jnp.abs(c.image[c.step])
            return (c.step < m) & self.unfinished(system, c.spent, residual, c.outcome)

        def grow(c: _Arnoldi) -> _Arnoldi:
            j = c.step
            image = system.operator.mv(jax.tree.map(lambda leaf: leaf[j], c.basis))
            length = vector.norm(image)
            finite = jnp.isfinite(length)
            # Twice is enough (Giraud et al. 2005): classical Gram-Schmidt, orthogonal to rounding.
            h = vector.dots(c.basis, image)
            w = vector.sub(image, vector.combine(h, c.basis))
            again = vector.dots(c.basis, w)
            w = vector.sub(w, vector.combine(again, c.basis))
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
            outcome = Outcome.where(good & ~ended, RUNNING, Outcome.stagnated)
            new_basis = jax.tree.map(lambda leaf, v: leaf.at[j + 1].set(v), c.basis, unit)
            return _Arnoldi(
                step=jnp.where(good, j + 1, j),
                spent=c.spent + 1,
                basis=vector.where(good, new_basis, c.basis),
                triangle=jnp.where(good, c.triangle.at[:, j].set(column[:m]), c.triangle),
                rotation=jnp.where(good, rotation, c.rotation),
                image=jnp.where(good, turned, c.image),
                spectrum=c.spectrum.met(h[j]),
                outcome=Outcome.where(finite, outcome, Outcome.not_finite),
            )

        def unfinished(c: _Restart) -> Array:
            return self.unfinished(system, c.spent, c.size, c.outcome)

        def cycle(c: _Restart) -> _Restart:
            unit = vector.scale(1 / c.size, c.residual)
            basis = jax.tree.map(
                lambda leaf: (
                    vector.placed(jnp.zeros((m + 1, *leaf.shape), leaf.dtype), leaf).at[0].set(leaf)
                ),
                unit,
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
                    outcome=RUNNING,
                ),
            )
            used = columns < inner.step
            triangle = jnp.where(used[:, None] & used, inner.triangle, jnp.eye(m, dtype=dtype))
            y = jax.scipy.linalg.solve_triangular(triangle, jnp.where(used, inner.image[:m], 0))
            x = vector.axpy(1.0, vector.combine(jnp.append(y, 0), inner.basis), c.x)
            # The residual lies in the space just built: no product is needed to know it.
            rest = inner.image[inner.step]
            residual = vector.combine(rest * inner.rotation[inner.step], inner.basis)
            size = jnp.abs(rest)
            idle = (inner.outcome == RUNNING) & (size > (1 - 1e-4) * c.size)
            return _Restart(
                spent=inner.spent,
                x=x,
                residual=residual,
                size=size,
                spectrum=inner.spectrum,
                outcome=Outcome.where(idle, Outcome.stagnated, inner.outcome),
            )

        x0, r0, products = system.begin()
        start = _Restart(
            spent=jnp.zeros((), jnp.int32),
            x=x0,
            residual=r0,
            size=vector.length(r0),
            spectrum=nothing_met(dtype),
            outcome=RUNNING,
        )
        end = jax.lax.while_loop(unfinished, cycle, start)
        products = products + end.spent
        return system.solution(end.x, end.size, products, end.outcome, end.spectrum, tol=self.tol)


class _Arnoldi(eqx.Module):
    step: Array
    spent: Array
    basis: PyTree
    triangle: Array
    rotation: Array
    image: Array
    spectrum: Spectrum
    outcome: Outcome


class _Restart(eqx.Module):
    spent: Array
    x: PyTree
    residual: PyTree
    size: Array
    spectrum: Spectrum
    outcome: Outcome
