"""Conjugate gradient that learns from the systems it solved before.

Along an outer search one system follows another, each a little different from the last. The
directions and products of the last solves are secant pairs of the new operator too, nearly: they
make a limited-memory BFGS inverse that serves as preconditioner and costs no product (Morales &
Nocedal, "Automatic preconditioning by limited memory quasi-Newton updating", SIAM J. Optim. 2000;
in its compact form by Byrd, Nocedal & Schnabel, Math. Programming 1994). And the last solutions
point to the next one: the solve starts at their combination of least energy error (Fischer,
"Projection techniques for iterative solution of Ax = b with successive right-hand sides", 1998).
"""

from functools import partial, reduce
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.expected import require_count
from hypergrad.linear import vector
from hypergrad.linear.base import IterativeSolver
from hypergrad.linear.conjugate import Iteration, conjugate_gradient
from hypergrad.linear.packing import Packing
from hypergrad.linear.solution import LinearSolution, Spectrum
from hypergrad.linear.system import System
from hypergrad.outcome import RUNNING, Outcome

_EARLIER = 3
_HIGHEST = jax.lax.Precision.HIGHEST
_product = partial(jnp.matmul, precision=_HIGHEST)


class Memory(eqx.Module):
    """What `RecyclingCG` knows of earlier systems.

    **Fields:**

    - `pairs`: unit directions `s` and their images `y = A s`, leaves `(2, memory, ...)` for every
      leaf of the packed vectors.
    - `recorded`: how many have been written, one row after the other and then over the oldest; once
      all rows are in use it stays between `memory` and `2 memory`.
    - `solutions`: the solutions before the last one, newest first, a pytree with leaves
      `(3, ...)`; zeros where there is none yet.
    """

    pairs: PyTree
    recorded: Int[Array, ""]
    solutions: PyTree

    def age(self) -> Int[Array, " memory"]:
        """0 for the oldest row; those never written count as the oldest."""
        memory = self._memory
        return (jnp.arange(memory) - self.recorded) % memory

    def used(self) -> Bool[Array, " memory"]:
        """Which rows hold a pair."""
        return jnp.arange(self._memory) < self.recorded

    def with_pair(self, s: PyTree, y: PyTree, good: Bool[Array, ""]) -> Self:
        """With one pair more, made a unit one, if it is good."""
        factor = jnp.where(good, 1 / vector.length(s), 0)
        row = self.recorded % self._memory

        def write(rows: Array, s: Array, y: Array) -> Array:
            new = factor.astype(rows.dtype) * jnp.stack([s, y])[:, None]
            old = jax.lax.dynamic_slice_in_dim(rows, row, 1, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(rows, jnp.where(good, new, old), row, axis=1)

        full = self.recorded == 2 * self._memory - 1
        after = jnp.where(full, self._memory, self.recorded + 1)
        return type(self)(
            jax.tree.map(write, self.pairs, s, y),
            jnp.where(good, after, self.recorded),
            self.solutions,
        )

    @property
    def _memory(self) -> int:
        return jax.tree.leaves(self.pairs)[0].shape[1]


class RecyclingCG(IterativeSolver):
    """Conjugate gradient preconditioned and started from the solves before; one product a step.

    Within `ImplicitDifferentiation` (with `warm_start`), which keeps what it learned in the state,
    it needs about a third of the products of a cold `CG` on a smooth outer search; on the first
    system, or without a state, it is plain `CG`. A combination of up to four earlier solutions is
    the start, at one product for each. Worth its memory where the parameters are thousands rather
    than millions: `2 memory + 3` vectors.

    On a direction of non-positive curvature it stops, returns the iterate before and says so, as
    `CG` does.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most products spent. May be traced. Default 1000.
    - `memory`: how many directions to remember, at least 4. Default 60.
    - `state`: what earlier solves have left; the estimator sets it.
    """

    symmetric_only: ClassVar[bool] = True

    memory: int = eqx.field(static=True, default=60)
    state: Memory | None = None

    def __check_init__(self) -> None:
        require_count("RecyclingCG", "memory", self.memory, _EARLIER + 1)

    def init_state(self, like: PyTree) -> Memory:
        """See `LinearSolver.init_state`."""
        like = vector.widen(like)
        return self._nothing_known(Packing(like).pack(like))

    def _nothing_known(self, packed: PyTree) -> Memory:
        pairs, solutions = (
            jax.tree.map(
                lambda a, rows=rows: vector.placed(jnp.zeros((*rows, *a.shape), a.dtype), a), packed
            )
            for rows in ((2, self.memory), (_EARLIER,))
        )
        return Memory(pairs, jnp.zeros((), jnp.int32), solutions)

    def with_state(self, state: PyTree) -> Self:
        """See `LinearSolver.with_state`."""
        return eqx.tree_at(lambda s: s.state, self, state, is_leaf=lambda leaf: leaf is None)

    def solve_scaled(self, system: System) -> LinearSolution:
        """See `LinearSolver.solve_scaled`."""
        known = self._nothing_known(system.rhs) if self.state is None else self.state
        last = vector.zeros_like(system.rhs) if system.start is None else system.start
        solutions = jax.tree.map(
            lambda a, b: jnp.concatenate([a[None].astype(b.dtype), b]), last, known.solutions
        )
        affordable = (self.max_steps > _EARLIER) & (system.norm > 0)
        first = _Start.among(solutions, system, affordable)
        met = Outcome.where(first.indefinite, Outcome.nonpositive_curvature, RUNNING)
        start = Iteration(
            products=first.products,
            x=first.value,
            residual=first.residual,
            square=vector.vdot(first.residual, first.residual),
            direction=system.rhs,
            along=jnp.full_like(system.norm, jnp.inf),
            warm=jnp.asarray(False),
            sound=jnp.asarray(True),
            spectrum=first.spectrum,
            outcome=Outcome.where(first.finite, met, Outcome.not_finite),
            memory=first.recorded_in(known, jax.tree.map(lambda a: a[:-1], solutions)),
        )
        return conjugate_gradient(
            self, system, start, _Inverse.of(known), dispensable=True, observe=Memory.with_pair
        )


class _Start(eqx.Module):
    """The combination of earlier solutions with the least energy error, and what finding it told.

    `directions` and `images` have a row for each solution, conjugate to each other; `positive`:
    those with positive curvature.
    """

    value: PyTree
    residual: PyTree
    products: Int[Array, ""]
    directions: PyTree
    images: PyTree
    positive: Bool[Array, " rows"]
    spectrum: Spectrum
    indefinite: Bool[Array, ""]
    finite: Bool[Array, ""]

    @classmethod
    def among(
        cls,
        solutions: PyTree,
        system: System,
        affordable: Bool[Array, ""],
    ) -> "_Start":
        stacked, found = _orthonormal(solutions)
        affordable = affordable & jnp.any(found)
        # The operator is not to see zeros: the right-hand side takes their place, for nothing.
        filled = jax.tree.map(lambda a, b: jnp.where(_column(found, a), a, b), stacked, system.rhs)
        images = jax.lax.cond(affordable, jax.vmap(system.operator.mv), vector.zeros_like, filled)
        finite = jax.vmap(vector.all_finite)(images)
        known = found & finite & affordable
        basis, images = (
            jax.tree.map(lambda a: jnp.where(_column(known, a), a, 0), tree)
            for tree in (stacked, images)
        )
        gram = _grams(basis, images)
        low_to_high, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
        curvature, rotation = low_to_high[::-1], vectors[:, ::-1].T
        directions, images = (
            jax.tree.map(lambda rows: jnp.tensordot(rotation, rows, 1, precision=_HIGHEST), tree)
            for tree in (basis, images)
        )
        rounding = 10 * jnp.finfo(curvature.dtype).eps * jnp.abs(curvature).max()
        positive = curvature > rounding
        share = jnp.where(
            positive, vector.dots(directions, system.rhs) / jnp.where(positive, curvature, 1), 0
        )
        lowest = jnp.nanmin(jnp.where(positive, curvature, jnp.nan))
        return cls(
            value=vector.combine(share, directions),
            residual=vector.sub(system.rhs, vector.combine(share, images)),
            products=jnp.where(affordable, jnp.sum(found, dtype=jnp.int32), 0),
            directions=directions,
            images=images,
            positive=positive,
            spectrum=Spectrum(lowest, jnp.where(positive[0], curvature[0], jnp.nan)),
            indefinite=jnp.any(curvature < -rounding),
            finite=jnp.all(finite),
        )

    def recorded_in(self, known: Memory, solutions: PyTree) -> Memory:
        """What was known, with these solutions, and the directions of positive curvature."""

        def record(i: Array, known: Memory) -> Memory:
            s, y = (_row(tree, i) for tree in (self.directions, self.images))
            return known.with_pair(s, y, self.positive[i])

        known = Memory(known.pairs, known.recorded, solutions)
        return jax.lax.fori_loop(0, len(self.positive), record, known)


class _Inverse(eqx.Module):
    """The limited-memory BFGS inverse of pairs `S`, `Y`, starting from `γ I`.

    With `R` the upper triangle of `SᵀY`, `D` its diagonal and `W = R⁻ᵀ (D + γ YᵀY) R⁻¹`:

        P⁻¹ v = γ v + [S Y] M [S Y]ᵀ v,   M = [[W, −γ R⁻ᵀ], [−γ R⁻¹, 0]]

    Positive definite for any pairs with `s·y > 0`. "Upper" is from the older to the newer pair: the
    rows of the ring stay where they are.
    """

    pairs: PyTree
    middle: Array
    gamma: Scalar

    @classmethod
    def of(cls, known: Memory) -> "_Inverse":
        age, used = known.age(), known.used()
        pairs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), known.pairs)
        images = jax.tree.map(lambda a: a[1], known.pairs)
        products, squares = jnp.split(_grams(pairs, images), 2)
        newest = jnp.argmax(age)
        diagonal = jnp.diagonal(products)
        gamma = jnp.where(used[newest], diagonal[newest] / squares[newest, newest], 1)
        triangle = jnp.where(age[:, None] <= age, products, 0) + jnp.diag(jnp.where(used, 0.0, 1.0))
        inverse = _inverted(triangle.astype(products.dtype), newest)
        whole = inverse.T @ (jnp.diag(diagonal) + gamma * squares) @ inverse
        middle = jnp.block([[whole, -gamma * inverse.T], [-gamma * inverse, jnp.zeros_like(whole)]])
        return cls(pairs, middle, gamma)

    def __call__(self, v: PyTree) -> PyTree:
        coefficients = _product(self.middle, vector.dots(self.pairs, v))
        return vector.axpy(self.gamma, v, vector.combine(coefficients, self.pairs))


def _inverted(triangle: Array, last: Int[Array, ""]) -> Array:
    """The inverse of a matrix that is upper triangular but for a rotation of rows and columns.

    Row by row upwards from the one that is last in the triangle. Not by LAPACK: its threads spend a
    hundred times as much on a matrix of this size.
    """
    size = len(triangle)

    def row(k: Array, inverse: Array) -> Array:
        i = (last - k) % size
        unit = (jnp.arange(size) == i).astype(triangle.dtype)
        return inverse.at[i].set((unit - _product(triangle[i], inverse)) / triangle[i, i])

    return jax.lax.fori_loop(0, size, row, jnp.zeros_like(triangle))


def _orthonormal(vectors: PyTree) -> tuple[PyTree, Bool[Array, " rows"]]:
    """An orthonormal basis of the rows, with zeros for one that adds nothing; which do.

    Gram-Schmidt, twice. In a loop, which compiles faster than the same written out.
    """
    rows = len(jax.tree.leaves(vectors)[0])

    def add(i: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        basis, found = carry
        one = _row(vectors, i)
        length = vector.norm(one)
        rest = vector.scale(1 / jnp.where(length > 0, length, 1), one)
        for _ in range(2):
            rest = vector.sub(rest, vector.combine(vector.dots(basis, rest), basis))
        size = vector.norm(rest)
        # What is left of a solution that did not move is rounding.
        new = jnp.isfinite(length) & (length > 0) & (size > 100 * jnp.finfo(size.dtype).eps)
        rest = vector.scale(1 / jnp.where(new, size, 1), rest)
        rest = vector.where(new, rest, vector.zeros_like(rest))
        return jax.tree.map(lambda a, b: a.at[i].set(b), basis, rest), found.at[i].set(new)

    start = (vector.zeros_like(vectors), jnp.zeros(rows, bool))
    return jax.lax.fori_loop(0, rows, add, start)


def _row(tree: PyTree, i: Array) -> PyTree:
    return jax.tree.map(lambda a: a[i], tree)


def _column(flags: Array, like: Array) -> Array:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _grams(x: PyTree, y: PyTree) -> Array:
    """Inner products of all rows with all rows, shape `(rows, rows)`."""

    def leaf(a: Array, b: Array) -> Array:
        if vector.split(a):
            return jax.vmap(lambda row: vector.dots(b, row))(a)
        return _product(a.reshape(len(a), -1), b.reshape(len(b), -1).T)

    return reduce(jnp.add, jax.tree.leaves(jax.tree.map(leaf, x, y)))
