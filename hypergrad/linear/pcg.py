"""Preconditioned conjugate gradient for `A x = b` with `A` symmetric positive definite.

Concus, Golub & O'Leary (1976). The stop, and what is returned, are in the plain norm of the
residual, as for `CG`, so that the two can be compared.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.preconditioner import Jacobi, Preconditioner
from hypergrad.linear.system import Spectrum, check_stop, normalise, nothing_met


class PCG(LinearSolver):
    """Conjugate gradient with a preconditioner; one product a step, and those of the building.

    Cut short by `max_steps`, it returns the last iterate, as `CG` does: the energy norm of its
    error falls from step to step, where the residual may rise.

    On a direction of non-positive curvature it stops, returns the iterate before and says so. A
    preconditioner that is not positive definite is a `breakdown`.

    **Arguments:**

    - `preconditioner`: a recipe (`Jacobi()`, the default; `NystromPreconditioner()`), built from
      the operator at every solve, or one that is built already (`Diagonal(d)`, or what a recipe's
      `build` returned at an earlier outer step).
    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most steps. May be traced. Default 1000.
    """

    preconditioner: Preconditioner = Jacobi()
    tol: float | Scalar = 1e-6
    max_steps: int | Int[Array, ""] = 1000

    def __check_init__(self) -> None:
        check_stop("PCG", self.tol, self.max_steps)
        if not isinstance(self.preconditioner, Preconditioner):
            raise ValueError(
                "PCG: preconditioner must be a Preconditioner (e.g. Jacobi(), Diagonal(d)), "
                f"got {type(self.preconditioner).__name__}."
            )

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSolver.solve`.

        **Raises:** `ValueError` if the operator is not marked symmetric.
        """
        if not operator.symmetric:
            raise ValueError(
                "PCG needs a symmetric operator, and this one is not. "
                "Use GMRES, BiCGStab or NormalCG."
            )
        system = normalise(operator, rhs, initial)
        inverse, building = self.preconditioner.build(system.operator, system.rhs)
        dtype = system.norm.dtype
        eps = jnp.finfo(dtype).eps

        def unfinished(c: _Iteration) -> Array:
            return (c.step < self.max_steps) & (c.size > self.tol) & ~c.stop

        def body(c: _Iteration) -> _Iteration:
            z = inverse(c.residual)
            rz = vector.vdot(c.residual, z)
            sound = jnp.isfinite(rz) & (rz > 0)
            direction = vector.axpy(rz / c.rz, c.direction, z)
            direction = vector.where(sound, direction, c.residual)
            image = system.operator.mv(direction)
            curvature = vector.vdot(direction, image)
            square = vector.vdot(direction, direction)
            finite = jnp.isfinite(curvature) & sound
            quotient = curvature / square
            spectrum = vector.where(finite, c.spectrum.met(quotient), c.spectrum)
            positive = quotient > eps * jnp.maximum(spectrum.high, 0)
            alpha = jnp.where(finite & positive, rz / curvature, 0)
            residual = vector.axpy(-alpha, image, c.residual)
            size = vector.norm(residual)
            overflow = ~jnp.isfinite(size)
            # What a failed step makes of the residual is not used: the iteration ends with it.
            good = finite & positive & ~overflow
            return _Iteration(
                step=c.step + 1,
                x=vector.where(good, vector.axpy(alpha, direction, c.x), c.x),
                residual=residual,
                size=jnp.where(good, size, c.size),
                direction=direction,
                rz=rz,
                spectrum=spectrum,
                stop=~good,
                indefinite=finite & ~positive,
                breakdown=~finite | overflow,
            )

        first = vector.norm(system.residual)
        no = jnp.asarray(False)
        start = _Iteration(
            step=jnp.zeros((), jnp.int32),
            x=system.start,
            residual=system.residual,
            size=first,
            direction=vector.zeros_like(system.rhs),
            rz=jnp.ones((), dtype),
            spectrum=nothing_met(dtype),
            stop=first == 0,
            indefinite=no,
            breakdown=no,
        )
        end = jax.lax.while_loop(unfinished, body, start)
        return system.solution(
            end.x,
            end.size,
            system.products + building + end.step,
            nonpositive=end.indefinite,
            breakdown=end.breakdown,
            spectrum=end.spectrum,
        )


class _Iteration(eqx.Module):
    step: Array
    x: PyTree
    residual: PyTree
    size: Array  # of the residual of x
    direction: PyTree
    rz: Array
    spectrum: Spectrum
    stop: Array
    indefinite: Array
    breakdown: Array
