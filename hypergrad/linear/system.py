"""A linear system brought to the form that every iterative method here starts from.

The right-hand side is scaled to unit norm, so that thresholds mean the same for a cotangent of
1e-12 as for one of 1e6, and iterates are kept in at least float32, so that the recurrences of a
bfloat16 model do not drown in rounding; only the vectors handed to the operator are rounded to its
dtypes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution


class System(eqx.Module):
    """`A x = b`, with `‖b‖ = 1` (or `b = 0`) if normalised, and a start whose residual is known.

    **Fields:**

    - `operator`: `A` on vectors of accumulation dtype.
    - `rhs`: `b`, scaled if normalised.
    - `norm`: `‖b‖` before scaling; 1 if it is not scaled.
    - `start`, `residual`: `x₀` and `b − A x₀`, never longer than `b`.
    - `products`: products spent on the start (0 or 1).
    """

    operator: LinearOperator
    rhs: PyTree
    norm: Scalar
    start: PyTree
    residual: PyTree
    products: Int[Array, ""]
    target: PyTree = eqx.field(static=True)

    def measured(self, x: PyTree, known: Scalar, steps: Array) -> tuple[Scalar, Array]:
        """`‖b − A x‖` by one more product, for methods whose recurrence strays from it.

        **Returns:** the norm (`known` where no step was taken, or the product is not finite), and
        the products spent.
        """

        def measure() -> Scalar:
            return vector.norm(vector.sub(self.rhs, self.operator.mv(x)))

        moved = (steps > 0) & (vector.norm(x) > 0)
        size = jax.lax.cond(moved, measure, lambda: known)
        return jnp.where(jnp.isfinite(size), size, known), moved.astype(jnp.int32)

    def solution(
        self,
        x: PyTree,
        residual: Scalar,
        products: Int[Array, ""],
        *,
        nonpositive: Bool[Array, ""],
        breakdown: Bool[Array, ""],
        spectrum: "Spectrum",
    ) -> LinearSolution:
        """Undo the scaling of `x` and state the result in the units and dtypes of the caller."""
        value = jax.tree.map(
            lambda leaf, like: (self.norm * leaf).astype(like.dtype), x, self.target
        )
        seen = spectrum.high >= spectrum.low
        return LinearSolution(
            value=value,
            residual=jnp.asarray(residual, self.norm.dtype),
            products=jnp.asarray(products, jnp.int32),
            nonpositive_curvature=nonpositive,
            breakdown=breakdown | ~jnp.isfinite(self.norm),
            curvature_min=jnp.where(seen, spectrum.low, jnp.nan).astype(self.norm.dtype),
            curvature_max=jnp.where(seen, spectrum.high, jnp.nan).astype(self.norm.dtype),
        )


def unscaled(operator: LinearOperator, rhs: PyTree) -> System:
    """`operator x = rhs` as it is, from a start of zero."""
    rhs = jax.tree.map(jnp.asarray, rhs)
    target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), rhs)
    b = vector.widen(rhs)
    one, none = jnp.ones_like(vector.length(b)), jnp.zeros((), jnp.int32)
    wide = LinearOperator(
        vector.widened(operator.mv, target),
        vector.widened(operator.transpose_mv, target),
        operator.symmetric,
    )
    return System(wide, b, one, vector.zeros_like(b), b, none, target)


def normalise(operator: LinearOperator, rhs: PyTree, initial: PyTree | None) -> System:
    """Scale `operator x = rhs`, and scale `initial` so that its residual is the smallest.

    The scaled start costs nothing beyond the one product that a residual needs, and it makes any
    start at least as good as zero: one left over from a cotangent of another length, or a useless
    one. A start that is zero or not finite costs no product.
    """
    whole = unscaled(operator, rhs)
    norm, lifted = vector.norm(whole.rhs), whole.operator
    b = vector.scale(1 / jnp.where(norm > 0, norm, 1), whole.rhs)
    if initial is None:
        return System(lifted, b, norm, whole.start, b, whole.products, whole.target)

    x0 = vector.widen(jax.tree.map(jnp.asarray, initial))
    length = vector.norm(x0)
    usable = jnp.isfinite(length) & (length > 0) & (norm > 0)
    direction = vector.scale(1 / jnp.where(usable, length, 1), x0)

    def scaled() -> tuple[PyTree, PyTree]:
        image = lifted.mv(direction)
        best = vector.vdot(image, b) / vector.vdot(image, image)
        fits = jnp.isfinite(best)
        start = vector.where(fits, vector.scale(best, direction), vector.zeros_like(b))
        residual = vector.where(fits, vector.axpy(-best, image, b), b)
        return start, residual

    start, residual = jax.lax.cond(usable, scaled, lambda: (vector.zeros_like(b), b))
    return System(lifted, b, norm, start, residual, usable.astype(jnp.int32), whole.target)


def check_stop(method: str, tol: object, max_steps: object) -> None:
    """Raise `ValueError` for a negative tolerance or step limit given as a Python number."""
    if isinstance(tol, float | int) and not tol >= 0:
        raise ValueError(f"{method}: tol must be >= 0, got {tol}.")
    if isinstance(max_steps, int) and max_steps < 0:
        raise ValueError(f"{method}: max_steps must be >= 0, got {max_steps}.")


class Spectrum(eqx.Module):
    """Smallest and largest Rayleigh quotient met so far (`inf`, `-inf` before the first)."""

    low: Scalar
    high: Scalar

    def met(self, quotient: Scalar) -> "Spectrum":
        """With one more quotient; a non-finite one is ignored."""
        fine = jnp.isfinite(quotient)
        return Spectrum(
            jnp.where(fine, jnp.minimum(self.low, quotient), self.low),
            jnp.where(fine, jnp.maximum(self.high, quotient), self.high),
        )


def nothing_met(dtype: jnp.dtype) -> Spectrum:
    """No quotient met yet."""
    infinity = jnp.asarray(jnp.inf, dtype)
    return Spectrum(infinity, -infinity)
