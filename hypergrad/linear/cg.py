"""Conjugate gradient for `A x = b` with `A` symmetric positive definite.

Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems" (1952). Written out
rather than taken from a library because an inverse-Hessian product needs what they do not give: a
stop at non-positive curvature, containment of non-finite products, a sound iterate whatever
happens, and no product with a vector of zeros.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.packing import Packing
from hypergrad.linear.system import check_stop


class CG(LinearSolver):
    """Conjugate gradient; one product a step.

    Cut short by `max_steps`, it returns the last iterate: its errors fall from step to step, in the
    energy norm and in the Euclidean one (Hestenes & Stiefel 1952), where residuals may rise above
    the first.

    On a direction of non-positive curvature it stops, returns the iterate before (Steihaug 1983)
    and says so: the operator is then not positive definite and damping, Gauss-Newton curvature or a
    solver for indefinite systems is called for.

    A warm start is first scaled by the step that minimises the energy norm of the error along it,
    so that it is never worse than no start, whatever happened to the length of `b` since.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced.
    - `max_steps`: most products spent. May be traced.
    """

    tol: float | Scalar = 1e-6
    max_steps: int | Int[Array, ""] = 1000

    def __check_init__(self) -> None:
        check_stop("CG", self.tol, self.max_steps)

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSolver.solve`.

        **Raises:** `ValueError` if the operator is not marked symmetric.
        """
        if not operator.symmetric:
            raise ValueError(
                "CG needs a symmetric operator, and this one is not (a fixed point or a "
                "user-given optimality map). Use GMRES, BiCGStab or NormalCG, or declare the "
                "map symmetric if it is the gradient of something."
            )
        packing = Packing(rhs)
        product, rhs = packing.around(operator.mv), packing.pack(rhs)
        b_square = vector.vdot(rhs, rhs)
        b_norm = jnp.sqrt(b_square)
        dtype = b_norm.dtype
        eps = jnp.finfo(dtype).eps

        # x = 0 and r = b need no product. A warm start is the first *direction*: the exact step
        # along it is its best scaling, and the loop body stays the only place with a product.
        warm = jnp.asarray(False)
        last, along, square = rhs, b_square, b_square
        if initial is not None:
            initial = packing.pack(initial)
            size = vector.vdot(initial, initial)
            warm = size > 0
            last = vector.where(warm, initial, rhs)
            along = jnp.where(warm, vector.vdot(initial, rhs), b_square)
            square = jnp.where(warm, size, b_square)

        def unfinished(carry: "_Iteration") -> Array:
            return (carry.step < self.max_steps) & (carry.norm > self.tol * b_norm) & ~carry.stop

        def body(c: "_Iteration") -> "_Iteration":
            # Made here and not at the end: the last use of the old direction makes the new one, so
            # that the compiler needs no copy of it.
            fresh = jnp.where(c.warm, 0, 1)
            direction = vector.axpy(c.factor, c.direction, vector.scale(fresh, c.residual))
            image = product(direction)
            curvature = vector.vdot(direction, image)
            quotient = curvature / c.square
            # An entry of the image that is not finite makes the product with it not finite.
            finite = jnp.isfinite(curvature)
            positive = curvature > eps * c.square * jnp.where(c.step > 0, c.high, 0)
            good = finite & positive
            step = jnp.where(good, c.along / curvature, 0)
            residual = vector.axpy(-step, image, c.residual)
            new_square = vector.vdot(residual, residual)
            # What a failed step makes of the residual is not used, for the iteration ends with it.
            # Only one of no positive curvature along a warm start is passed over, and not made.
            overflow = ~jnp.isfinite(new_square)
            good = good & ~overflow
            # After the step along a warm start the recurrence begins afresh at the residual.
            factor = jnp.where(c.warm, 0, new_square / c.along)
            return _Iteration(
                step=c.step + 1,
                x=vector.where(good, vector.axpy(step, direction, c.x), c.x),
                residual=residual,
                norm=jnp.where(good, jnp.sqrt(new_square), c.norm),
                direction=direction,
                factor=factor,
                along=new_square,
                square=new_square + factor**2 * c.square,
                warm=jnp.asarray(False),
                stop=~good & ~(c.warm & finite & ~overflow),
                indefinite=c.indefinite | (finite & ~positive),
                breakdown=c.breakdown | ~finite | overflow,
                low=jnp.where(finite, jnp.fmin(c.low, quotient), c.low),
                high=jnp.where(finite, jnp.fmax(c.high, quotient), c.high),
            )

        no = jnp.asarray(False)
        zero = vector.zeros_like(rhs)
        unknown = jnp.full((), jnp.nan, dtype)
        start = _Iteration(
            step=jnp.zeros((), jnp.int32),
            x=zero,
            residual=rhs,
            norm=b_norm,
            direction=last,
            factor=jnp.where(warm, 1, 0).astype(dtype),
            along=along,
            square=square,
            warm=warm,
            stop=~jnp.isfinite(b_norm) | (b_square == 0),
            indefinite=no,
            breakdown=~jnp.isfinite(b_norm),
            low=unknown,
            high=unknown,
        )
        end = jax.lax.while_loop(unfinished, body, start)
        return LinearSolution(
            value=packing.unpack(end.x),
            residual=jnp.where(b_norm > 0, end.norm / b_norm, 0),
            products=end.step,
            nonpositive_curvature=end.indefinite,
            breakdown=end.breakdown,
            curvature_min=end.low,
            curvature_max=end.high,
        )


class _Iteration(eqx.Module):
    step: Array
    x: PyTree
    residual: PyTree
    norm: Array  # of the residual of x
    direction: PyTree  # the last one
    factor: Array  # of the last direction in the next one
    along: Array  # <direction, residual>; the residual's square, but for a warm start
    square: Array  # <direction, direction>, by recurrence
    warm: Array
    stop: Array
    indefinite: Array
    breakdown: Array
    low: Array
    high: Array
