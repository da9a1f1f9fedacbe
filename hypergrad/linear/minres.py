"""MINRES for `A x = b` with `A` symmetric, definite or not, singular or not.

Paige & Saunders, "Solution of sparse indefinite systems of linear equations" (1975); the test for
non-positive curvature is that of Liu & Roosta, "MINRES: from negative curvature detection to
monotonicity properties" (2022).
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.solution import LinearSolution, Spectrum, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import RUNNING, Outcome


class MINRES(IterativeSolver):
    """Minimal residual; one product a step, and one to measure the residual in the end.

    The measurement is needed: what the recurrence says strays from the truth by the square of
    the condition number times the rounding error, and a `residual` above `tol` tells of it.

    For a singular operator it converges to a least-squares solution and stops there: `residual`
    is then the part of `b` outside the range. Non-positive curvature is reported and does not end
    the iteration.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps. May be traced. Default 1000.
    """

    symmetric_only: ClassVar[bool] = True

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps
        x0, r0, products = system.begin()
        first = vector.length(r0)

        def unfinished(c: _Iteration) -> Array:
            return self.unfinished(system, c.step, c.size, c.outcome)

        def body(c: _Iteration) -> _Iteration:
            # Lanczos: A v = beta v_old + alpha v + beta_new v_new.
            image = system.operator.mv(c.v)
            alpha = vector.vdot(c.v, image)
            w = vector.axpy(-c.beta, c.v_old, vector.axpy(-alpha, c.v, image))
            beta = vector.norm(w)
            finite = jnp.isfinite(alpha) & jnp.isfinite(beta)
            # The last rotation turns the new column, the next one annihilates beta.
            delta = c.cosine * c.delta_next + c.sine * alpha
            gamma_bar = c.sine * c.delta_next - c.cosine * alpha
            gamma = jnp.hypot(gamma_bar, beta)
            scale = jnp.maximum(c.scale, jnp.sqrt(alpha**2 + beta**2 + c.beta**2))
            # |A r| of the iterate so far: zero at a least-squares solution. Past the smallest that
            # rounding allows it grows while |r| stands still, and the iterate runs off into the
            # kernel: that is the mark of a singular operator, and the time to stop.
            normal = c.size * jnp.hypot(gamma_bar, c.cosine * beta)
            closer = finite & (normal < c.normal)
            lost = (normal > 30 * c.normal) & (c.size > 0.9 * c.best_size)
            lost = lost & (c.normal <= eps**0.5 * scale * c.size)
            solved = normal <= eps**0.75 * scale * c.size
            good = finite & (gamma > 0) & ~solved & ~lost
            safe = jnp.where(good, gamma, 1)
            cosine, sine = gamma_bar / safe, beta / safe
            d = jax.tree.map(
                lambda v, d1, d2: (v - delta * d1 - c.epsilon * d2) / safe, c.v, c.d, c.d_old
            )
            # An exhausted Krylov space leaves rounding noise as its next vector.
            ended = beta <= eps * scale
            outcome = Outcome.where(good & ~ended, RUNNING, Outcome.stagnated)
            return _Iteration(
                step=c.step + 1,
                x=vector.where(good, vector.axpy(cosine * c.size, d, c.x), c.x),
                v=vector.scale(1 / jnp.where(beta > 0, beta, 1), w),
                v_old=c.v,
                d=d,
                d_old=c.d,
                beta=beta,
                cosine=cosine,
                sine=sine,
                delta_next=-c.cosine * beta,
                epsilon=c.sine * beta,
                size=jnp.where(good, sine * c.size, c.size),
                best=vector.where(closer, c.x, c.best),
                best_size=jnp.where(closer, c.size, c.best_size),
                normal=jnp.where(closer, normal, c.normal),
                scale=scale,
                spectrum=c.spectrum.met(alpha).met(-c.cosine * gamma_bar),
                lost=lost,
                outcome=Outcome.where(finite, outcome, Outcome.not_finite),
            )

        zero = jnp.zeros((), dtype)
        nothing = vector.zeros_like(system.rhs)
        start = _Iteration(
            step=jnp.zeros((), jnp.int32),
            x=x0,
            v=vector.scale(1 / jnp.where(first > 0, first, 1), r0),
            v_old=nothing,
            d=nothing,
            d_old=nothing,
            beta=zero,
            cosine=zero - 1,
            sine=zero,
            delta_next=zero,
            epsilon=zero,
            size=first,
            best=x0,
            best_size=first,
            normal=jnp.asarray(jnp.inf, dtype),
            scale=zero,
            spectrum=nothing_met(dtype),
            lost=jnp.asarray(False),
            outcome=RUNNING,
        )
        end = jax.lax.while_loop(unfinished, body, start)
        progress = (end.size <= self.tol * system.norm) | (end.size < 0.999 * end.best_size)
        progress = progress & ~end.lost
        x = vector.where(progress, end.x, end.best)
        known = jnp.where(progress, end.size, end.best_size)
        residual, measuring = system.measured(x, known, end.step)
        products = products + end.step + measuring
        return system.solution(
            x, residual, products, end.outcome, end.spectrum, tol=self.tol, reached=known
        )


class _Iteration(eqx.Module):
    step: Array
    x: PyTree
    v: PyTree
    v_old: PyTree
    d: PyTree
    d_old: PyTree
    beta: Array
    cosine: Array
    sine: Array
    delta_next: Array
    epsilon: Array
    size: Array
    best: PyTree
    best_size: Array
    normal: Array
    scale: Array
    spectrum: Spectrum
    lost: Array
    outcome: Outcome
