"""BiCGStab for any square `A`, in the memory of a few vectors.

van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the solution of
nonsymmetric linear systems" (1992). Not lineax's: that one returns NaN for `A = 2 I`, and stops
early in float32 from a few thousand unknowns on.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.solution import LinearSolution, Spectrum, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import RUNNING, Outcome


class BiCGStab(IterativeSolver):
    """Stabilised bi-conjugate gradient; two products a step, constant memory.

    One more product measures the residual in the end, since the recurrence strays from it.

    The residual may rise on the way: the iterate with the smallest one is returned. When the
    recurrence degenerates (the residual turns orthogonal to its shadow) it begins afresh at the
    current iterate; if that fails at once, for instance for a skew-symmetric operator, the solve
    ends with `breakdown`, and GMRES or NormalCG is called for.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps. May be traced. Default 500.
    """

    max_steps: int | Int[Array, ""] = 500

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps
        x0, r0, products = system.begin()
        target = self.tol * system.norm

        def unfinished(c: _Iteration) -> Array:
            return self.unfinished(system, c.step, c.best_size, c.outcome)

        def body(c: _Iteration) -> _Iteration:
            v = system.operator.mv(c.direction)
            sigma = vector.vdot(c.shadow, v)
            finite = jnp.isfinite(sigma) & jnp.isfinite(vector.norm(v))
            regular = jnp.abs(sigma) > eps * vector.norm(v) * vector.norm(c.shadow)
            good = finite & regular
            alpha = jnp.where(good, c.rho / jnp.where(regular, sigma, 1), 0)
            v = vector.where(finite, v, c.direction)
            s = vector.axpy(-alpha, v, c.residual)
            x = vector.axpy(alpha, c.direction, c.x)
            half = vector.length(s)

            # The second half divides by A s, which must not be asked for s = 0.
            again = good & (half > target)
            probe = vector.where(half > 0, s, c.direction)
            t = jax.lax.cond(again, system.operator.mv, lambda u: u, probe)
            t_square = vector.vdot(t, t)
            t_finite = jnp.isfinite(t_square)
            st = vector.vdot(s, t)
            smoothing = again & t_finite & (t_square > 0)
            omega = jnp.where(smoothing, st / jnp.where(t_square > 0, t_square, 1), 0)
            t = vector.where(t_finite, t, s)
            x = vector.axpy(omega, s, x)
            residual = vector.axpy(-omega, t, s)
            size = vector.length(residual)

            rho = vector.vdot(c.shadow, residual)
            degenerate = (jnp.abs(rho) <= eps * size * vector.norm(c.shadow)) | (omega == 0)
            beta = rho / c.rho * alpha / jnp.where(omega == 0, 1, omega)
            direction = vector.axpy(beta, vector.axpy(-omega, v, c.direction), residual)
            better = good & (size < c.best_size)
            broken = ~finite | (again & ~t_finite) | ~jnp.isfinite(size)
            # A fresh start that degenerates at once would do so for ever.
            stuck = ~regular | (degenerate & c.fresh & (size > target))
            spectrum = c.spectrum.met(
                vector.vdot(c.direction, v) / vector.vdot(c.direction, c.direction)
            )
            solved = better & (size <= target)
            outcome = Outcome.where(stuck & ~solved, Outcome.breakdown, RUNNING)
            spectrum = vector.where(again, spectrum.met(st / half**2), spectrum)
            return _Iteration(
                step=c.step + 1,
                spent=c.spent + 1 + again,
                x=x,
                residual=residual,
                direction=vector.where(degenerate, residual, direction),
                shadow=vector.where(degenerate, residual, c.shadow),
                rho=jnp.where(degenerate, size**2, rho),
                fresh=degenerate,
                best=vector.where(better, x, c.best),
                best_size=jnp.where(better, size, c.best_size),
                spectrum=spectrum,
                outcome=Outcome.where(broken, Outcome.not_finite, outcome),
            )

        first = vector.length(r0)
        start = _Iteration(
            step=jnp.zeros((), jnp.int32),
            spent=products,
            x=x0,
            residual=r0,
            direction=r0,
            shadow=r0,
            rho=first**2,
            fresh=jnp.asarray(True),
            best=x0,
            best_size=first,
            spectrum=nothing_met(dtype),
            outcome=RUNNING,
        )
        end = jax.lax.while_loop(unfinished, body, start)
        residual, measuring = system.measured(end.best, end.best_size, end.step)
        products = end.spent + measuring
        return system.solution(
            end.best,
            residual,
            products,
            end.outcome,
            end.spectrum,
            tol=self.tol,
            reached=end.best_size,
        )


class _Iteration(eqx.Module):
    step: Array
    spent: Array
    x: PyTree
    residual: PyTree
    direction: PyTree
    shadow: PyTree
    rho: Array
    fresh: Array
    best: PyTree
    best_size: Array
    spectrum: Spectrum
    outcome: Outcome
