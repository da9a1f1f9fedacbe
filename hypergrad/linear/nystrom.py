"""Nyström low-rank approximation `A ≈ Y (Ωᵀ Y)⁺ Yᵀ`, `Y = A Ω`: as a solver and a preconditioner.

The solver is that of Hataya & Yamada, "Nyström method for accurate and scalable implicit
differentiation" (2023), the preconditioner that of Frangella, Tropp & Udell, "Randomized Nyström
preconditioning" (2023). Both hold the approximation as orthonormal eigenvectors rather than by the
Woodbury formula, which squares the condition number.
"""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from hypergrad.expected import require_choice, require_count, require_positive
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.operator import LinearOperator, symmetric_operator
from hypergrad.linear.preconditioner import BuiltPreconditioner, Preconditioner
from hypergrad.linear.random import random_like
from hypergrad.linear.solution import LinearSolution, nothing_met
from hypergrad.linear.system import System
from hypergrad.outcome import Outcome

Sketch = Literal["gaussian", "columns"]


class LowRank(eqx.Module):
    """`A ≈ Σ values_i basis_i basis_iᵀ`, positive semi-definite.

    **Fields:**

    - `basis`: orthonormal vectors, stacked along the first axis of each leaf.
    - `values`: eigenvalues, largest first; zero where the sketch had nothing to say.
    - `indefinite`: a direction of negative curvature was met (and left out).
    - `low`, `high`: smallest and largest Rayleigh quotient on the sketch.
    """

    basis: PyTree
    values: Float[Array, " rank"]
    indefinite: Bool[Array, ""]
    low: Array
    high: Array

    def combine(self, v: PyTree, weights: Float[Array, " rank"]) -> PyTree:
        """`Σ weights_i ⟨basis_i, v⟩ basis_i`."""
        return vector.combine(weights * vector.dots(self.basis, v), self.basis)


def low_rank(
    operator: LinearOperator,
    like: PyTree,
    rank: int,
    *,
    sketch: Sketch = "gaussian",
    chunk: int | None = None,
    key: Array | None = None,
) -> LowRank:
    """Nyström approximation of a symmetric operator from `rank` independent products.

    **Arguments:**

    - `operator`: the map `A`.
    - `like`: a vector of its space, in accumulation dtype; only shapes and dtypes matter.
    - `rank`: number of products; at most the dimension is used.
    - `sketch`: `"gaussian"` (orthonormalised random vectors, the more accurate) or `"columns"`
      (a random choice of the operator's columns, as in the paper).
    - `chunk`: products taken together in one batch; all by default. Less memory for intermediate
      results, the same answer.
    - `key`: random key of the sketch; a fixed one by default.
    """
    key = jax.random.key(0) if key is None else key
    size = vector.size(like)
    rank = min(rank, size)
    flat, unravel = vector.flattened(like)
    dtype = flat.dtype
    stack = jax.vmap(unravel)
    ravel = jax.vmap(lambda v: vector.flattened(v)[0])

    if sketch == "columns":
        chosen = jax.random.choice(key, size, (rank,), replace=False)
        omega = jax.nn.one_hot(chosen, size, dtype=dtype)
    else:
        drawn = ravel(random_like(jax.random.normal, key, like, rank))
        omega = jnp.linalg.qr(drawn.T)[0].T
    images = ravel(jax.lax.map(operator.mv, stack(omega), batch_size=min(chunk or rank, rank)))

    highest = jax.lax.Precision.HIGHEST
    core = jnp.matmul(omega, images.T, precision=highest)
    finite = jnp.all(jnp.isfinite(images))
    weights, turn = jnp.linalg.eigh(jnp.where(finite, (core + core.T) / 2, jnp.eye(rank)))
    noise = 10 * rank * jnp.finfo(dtype).eps * jnp.max(jnp.abs(weights))
    kept = weights > noise
    root = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, weights, 1)), 0)
    factor = jnp.matmul(images.T, turn * root, precision=highest)
    q, r = jnp.linalg.qr(jnp.where(finite, factor, 0))
    u, s, _ = jnp.linalg.svd(r)
    basis = jnp.matmul(q, u, precision=highest).T
    unknown = jnp.asarray(jnp.nan, dtype)
    return LowRank(
        basis=stack(basis),
        values=jnp.where(finite, s**2, jnp.nan),
        indefinite=finite & (weights[0] < -noise),
        low=jnp.where(finite, weights[0], unknown),
        high=jnp.where(finite, weights[-1], unknown),
    )


class Nystrom(LinearSolver):
    """`x = (A_k + damping I)⁻¹ b` with the rank-`k` Nyström approximation `A_k` of `A`.

    The products do not wait for one another: they run as one batch, where CG's run in sequence. The
    answer is good in the directions that the sketch has seen; in the others it is `b / damping`, a
    very long step. `residual` is that of the system asked for, `A x = b`, and costs one product:
    look at it. (Damping already in `A` is not known here; `damping` comes on top.)

    **Arguments:**

    - `rank`: products of the sketch. Default 10.
    - `damping`: `ρ > 0`. Default 0.01. May be traced.
    - `sketch`: `"gaussian"` (default) or `"columns"`, see `low_rank`.
    - `chunk`: products taken together in one batch; all by default.
    - `key`: random key of the sketch; a fixed one by default.
    - `approximation`: a `LowRank` made before, to be used instead of a new sketch.
    """

    symmetric_only: ClassVar[bool] = True

    rank: int = eqx.field(static=True, default=10)
    damping: float | Array = 0.01
    sketch: Sketch = eqx.field(static=True, default="gaussian")
    chunk: int | None = eqx.field(static=True, default=None)
    key: Array | None = None
    approximation: LowRank | None = None

    def __check_init__(self) -> None:
        _check_sketch("Nystrom", self.rank, self.sketch, self.chunk)
        require_positive("Nystrom", "damping", self.damping)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`; a start is not used."""
        operator, like = system.unpacked, system.packing.like
        b = system.packing.unpack(system.rhs)
        sketched, spent = self.approximation, 0
        if sketched is None:
            sketched = low_rank(
                operator, like, self.rank, sketch=self.sketch, chunk=self.chunk, key=self.key
            )
            spent = min(self.rank, vector.size(like))
        rho = jnp.asarray(self.damping, system.norm.dtype)
        # (A_k + rho)⁻¹ b = b / rho + Σ (1 / (s + rho) − 1 / rho) u ⟨u, b⟩
        shrink = -sketched.values / (rho * (sketched.values + rho))
        x = vector.axpy(1 / rho, b, sketched.combine(b, shrink))
        length = vector.norm(x)
        usable = jnp.isfinite(length)
        x = vector.where(usable, x, vector.zeros_like(x))
        probe = vector.where(usable & (length > 0), x, b)
        left = vector.norm(vector.sub(b, operator.mv(probe)))
        outcome = Outcome.where(sketched.indefinite, Outcome.indefinite, Outcome.approximate)
        sound = usable & jnp.isfinite(left)
        return system.solution(
            system.packing.pack(x),
            jnp.where(usable, left, system.norm),
            jnp.where(system.norm == 0, 0, spent + 1),
            Outcome.where(sound, outcome, Outcome.not_finite),
            nothing_met(system.norm.dtype).met(sketched.low).met(sketched.high),
        )


class NystromPreconditioner(Preconditioner):
    """Flattens the top of the spectrum: `P⁻¹ = I + Σ (s_k / s_i − 1) u_i u_iᵀ`.

    For operators whose spectrum falls off fast. With `scaling`, the operator is first scaled by the
    square root of a diagonal, for those whose diagonal is far from constant (one weight decay for
    every weight).

    **Arguments:**

    - `rank`: products of the sketch, in one batch. Default 20.
    - `scaling`: another preconditioner that gives a `Diagonal`, e.g. `Jacobi()`, or `None`.
    - `chunk`: products taken together in one batch; all by default.
    - `key`: random key of the sketch; a fixed one by default.
    """

    rank: int = eqx.field(static=True, default=20)
    scaling: Preconditioner | None = None
    chunk: int | None = eqx.field(static=True, default=None)
    key: Array | None = None

    def __check_init__(self) -> None:
        _check_sketch("NystromPreconditioner", self.rank, "gaussian", self.chunk)

    @property
    def building(self) -> int:
        """See `Preconditioner.building`."""
        return self.rank + (0 if self.scaling is None else self.scaling.building)

    def build(
        self, operator: LinearOperator, like: PyTree
    ) -> tuple[BuiltPreconditioner, Int[Array, ""]]:
        """Sketch the (scaled) operator."""
        operator.require_symmetric("NystromPreconditioner")
        spent = jnp.asarray(min(self.rank, vector.size(like)), jnp.int32)
        root = None
        if self.scaling is not None:
            diagonal, used = self.scaling.build(operator, like)
            spent = spent + used
            ones = jax.tree.map(jnp.ones_like, like)
            root = jax.tree.map(jnp.sqrt, diagonal(ones))
            operator = _scaled(operator, root)
        sketched = low_rank(operator, like, self.rank, chunk=self.chunk, key=self.key)
        return Deflation(sketched, root), spent


class Deflation(BuiltPreconditioner):
    """A built `NystromPreconditioner`: the approximation, and the root of the scaling."""

    approximation: LowRank
    root: PyTree | None

    def __call__(self, v: PyTree) -> PyTree:
        """`P⁻¹ v`."""
        if self.root is not None:
            v = _times(self.root, v)
        values = self.approximation.values
        kept = values > 0
        smallest = jnp.min(jnp.where(kept, values, jnp.inf))
        weights = jnp.where(kept, smallest / jnp.where(kept, values, 1) - 1, 0)
        out = vector.axpy(1.0, self.approximation.combine(v, weights), v)
        return out if self.root is None else _times(self.root, out)


def _times(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, x, y)


def _scaled(operator: LinearOperator, root: PyTree) -> LinearOperator:
    return symmetric_operator(lambda v: _times(root, operator.mv(_times(root, v))))


def _check_sketch(method: str, rank: int, sketch: str, chunk: int | None) -> None:
    require_count(method, "rank", rank)
    require_choice(method, "sketch", sketch, ("gaussian", "columns"))
    if chunk is not None:
        require_count(method, "chunk", chunk)
