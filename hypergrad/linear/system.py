"""A linear system in the form that every solver here works on: scaled, wide and packed.

The right-hand side is divided by its largest entry, so that a cotangent of 1e-30 is solved as one
of 1e30 is; vectors are kept in at least float32, so that the recurrences of a bfloat16 model do not
drown in rounding; and small leaves are joined. Only the vectors handed to the operator are in its
own types and shapes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.operator import LinearOperator
from hypergrad.linear.packing import Packing
from hypergrad.linear.solution import LinearSolution, Spectrum
from hypergrad.outcome import Outcome, broke_down


class System(eqx.Module):
    """`A x = b` with the largest entry of `b` equal to one (or `b = 0`).

    **Fields:**

    - `operator`: `A` on packed vectors.
    - `rhs`: `b`, packed.
    - `norm`: `‖b‖`.
    - `start`: a start of unit length, zeros if it is of no use, or `None`.
    - `unpacked`: `A` on pytrees like the caller's, in at least float32.
    - `packing`: from the one form to the other.
    """

    operator: LinearOperator
    rhs: PyTree
    norm: Scalar
    start: PyTree | None
    unpacked: LinearOperator
    packing: Packing

    @classmethod
    def of(
        cls, operator: LinearOperator, rhs: PyTree, initial: PyTree | None
    ) -> tuple["System", Scalar]:
        """The system of a caller, and the factor by which its solution is to be multiplied."""
        scaled, size = vector.scaled(rhs)
        packing = Packing(scaled)
        wide = LinearOperator(
            vector.widened(operator.mv, rhs),
            vector.widened(operator.transpose_mv, rhs),
            operator.symmetric,
        )
        packed = LinearOperator(
            packing.around(wide.mv), packing.around(wide.transpose_mv), operator.symmetric
        )
        b = packing.pack(scaled)
        system = cls(packed, b, vector.length(b), None, wide, packing)
        if initial is None:
            return system, size
        initial = vector.cast_like(jax.tree.map(jnp.asarray, initial), scaled)
        return system.started_at(packing.pack(initial)), size

    def started_at(self, x: PyTree) -> "System":
        """The same system with a start, of any length; one that is not finite is not used."""
        length = vector.norm(x)
        usable = jnp.isfinite(length) & (length > 0) & (self.norm > 0)
        unit = jax.tree.map(
            lambda a: jnp.where(usable, a / jnp.where(usable, length, 1), 0).astype(a.dtype), x
        )
        return System(self.operator, self.rhs, self.norm, unit, self.unpacked, self.packing)

    @property
    def warm(self) -> Bool[Array, ""]:
        """Whether there is a start that is not zero."""
        return jnp.asarray(False) if self.start is None else vector.largest(self.start) > 0

    def begin(self) -> tuple[PyTree, PyTree, Int[Array, ""]]:
        """The start, scaled so that its residual is the smallest; that, and the products spent.

        It costs nothing beyond the one product that a residual needs, and makes any start at least
        as good as zero: one left over from a right-hand side of another length, or a useless one.
        """
        nothing = vector.zeros_like(self.rhs)
        if self.start is None:
            return nothing, self.rhs, jnp.zeros((), jnp.int32)
        direction = self.start

        def scaled() -> tuple[PyTree, PyTree]:
            image = self.operator.mv(direction)
            best = vector.vdot(image, self.rhs) / vector.vdot(image, image)
            fits = jnp.isfinite(best)
            start = vector.where(fits, vector.scale(best, direction), nothing)
            return start, vector.where(fits, vector.axpy(-best, image, self.rhs), self.rhs)

        warm = self.warm
        start, residual = jax.lax.cond(warm, scaled, lambda: (nothing, self.rhs))
        return start, residual, warm.astype(jnp.int32)

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
        products: Int[Array, ""] | int,
        outcome: Outcome,
        spectrum: Spectrum,
        *,
        tol: float | Scalar | None = None,
        reached: Scalar | None = None,
        state: PyTree = None,
    ) -> LinearSolution:
        """The solution `x` of this system.

        **Arguments:**

        - `residual`: `‖b − A x‖`, not divided by `‖b‖`.
        - `tol`: with a relative residual up to this, and no breakdown, it counts as solved.
        - `reached`: the residual to be compared with it, where that is another one.
        """
        zero = self.norm == 0
        if tol is not None:
            fine = (residual if reached is None else reached) <= tol * self.norm
            outcome = Outcome.where(fine & ~broke_down(outcome), Outcome.solved, outcome)
        dtype = self.norm.dtype
        return LinearSolution(
            value=x,
            residual=jnp.where(zero, 0, residual / jnp.where(zero, 1, self.norm)).astype(dtype),
            products=jnp.asarray(products, jnp.int32),
            outcome=Outcome.where(zero, Outcome.solved, outcome),
            curvature_min=spectrum.low.astype(dtype),
            curvature_max=spectrum.high.astype(dtype),
            state=state,
        )

    def restored(self, solution: LinearSolution, size: Scalar, rhs: PyTree) -> LinearSolution:
        """The solution of this system in the units, types and shapes of the caller."""
        finite = jnp.isfinite(size)
        factor = jnp.where(finite, size, 1)
        value = vector.cast_like(vector.scale(factor, self.packing.unpack(solution.value)), rhs)
        # Solved, or cut short, in spite of what was met on the way.
        mild = ~broke_down(solution.outcome) & self.operator.symmetric
        met = mild & (solution.curvature_min <= 0)
        met = met & (solution.outcome != Outcome.nonpositive_curvature)
        outcome = Outcome.where(met, Outcome.indefinite, solution.outcome)
        outcome = Outcome.where(finite, outcome, Outcome.not_finite)
        return eqx.tree_at(lambda s: (s.value, s.outcome), solution, (value, outcome))
