"""Conjugate gradient that learns from the systems it solved before.

Along an outer search one system follows another, each a little different from the last. The
directions and products of the last solves are secant pairs of the new operator too, nearly: they
make a limited-memory BFGS inverse that serves as preconditioner and costs no product (Morales &
Nocedal, "Automatic preconditioning by limited memory quasi-Newton updating", SIAM J. Optim. 2000;
in its compact form by Byrd, Nocedal & Schnabel, Math. Programming 1994). And the last solutions
point to the next one: the solve starts at their combination of least energy error (Fischer,
"Projection techniques for iterative solution of Ax = b with successive right-hand sides", 1998).
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.linear.base import LinearOperator, LinearSolution, LinearSolver
from hypergrad.linear.system import Spectrum, System, check_stop, normalise, widen

_EARLIER = 2
_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Recollection(eqx.Module):
    """What `RecyclingCG` knows of earlier systems.

    **Fields:**

    - `directions`, `images`: unit directions `s` and `y = A s`, the newest last, each a pytree with
      a leaf of shape `(memory, entries of the leaf)` for every leaf of the vectors.
    - `count`: of the rows in use, which are the last ones.
    - `solutions`: the solutions before the last one, newest first, a pytree with leaves
      `(2, ...)`; zeros where there is none yet.
    """

    directions: PyTree
    images: PyTree
    count: Int[Array, ""]
    solutions: PyTree


class RecyclingCG(LinearSolver):
    """Conjugate gradient preconditioned and started from the solves before; one product a step.

    Within `ImplicitDifferentiation` (with `warm_start`), which keeps its recollections in the
    state, it needs about a third of the products of a cold `CG` on a smooth outer search; on the
    first system, or without recollections, it is plain `CG`. A combination of up to three earlier
    solutions is the start, at one product for each. Worth its memory where the parameters are
    thousands rather than millions: `2 memory + 2` vectors.

    On a direction of non-positive curvature it stops, keeps the iterate of smallest residual and
    says so, as `CG` does.

    **Arguments:**

    - `tol`: stop at `‖b − A x‖ <= tol ‖b‖`. May be traced. Default 1e-6.
    - `max_steps`: most products spent. May be traced. Default 1000.
    - `memory`: how many directions to remember, at least 3. Default 60.
    - `recollection`: of earlier solves; the estimator's business.
    """

    tol: float | Scalar = 1e-6
    max_steps: int | Int[Array, ""] = 1000
    memory: int = eqx.field(static=True, default=60)
    recollection: Recollection | None = None

    def __check_init__(self) -> None:
        check_stop("RecyclingCG", self.tol, self.max_steps)
        if self.memory < _EARLIER + 1:
            raise ValueError(f"RecyclingCG: memory must be >= {_EARLIER + 1}, got {self.memory}.")

    def blank(self, like: PyTree) -> Recollection:
        """See `LinearSolver.blank`."""
        rows = jax.tree.map(lambda a: jnp.zeros((self.memory, a.size), a.dtype), like)
        solutions = jax.tree.map(lambda a: jnp.zeros((_EARLIER, *a.shape), a.dtype), like)
        return Recollection(rows, rows, jnp.zeros((), jnp.int32), solutions)

    def recalling(self, recollection: PyTree) -> Self:
        """See `LinearSolver.recalling`."""
        return eqx.tree_at(
            lambda s: s.recollection, self, recollection, is_leaf=lambda leaf: leaf is None
        )

    def solve(
        self, operator: LinearOperator, rhs: PyTree, *, initial: PyTree | None = None
    ) -> LinearSolution:
        """See `LinearSolver.solve`.

        **Raises:** `ValueError` if the operator is not marked symmetric.
        """
        if not operator.symmetric:
            raise ValueError(
                "RecyclingCG needs a symmetric operator, and this one is not. "
                "Use GMRES, BiCGStab or NormalCG."
            )
        system = normalise(operator, rhs, None)
        known = self.blank(system.rhs) if self.recollection is None else self.recollection
        last = vector.zeros_like(system.rhs) if initial is None else widen(initial)
        earlier = [jax.tree.map(lambda a, i=i: a[i], known.solutions) for i in range(_EARLIER)]
        whole = vector.length(system.rhs)
        affordable = (self.max_steps > _EARLIER) & (whole > 0)
        first = _Start.among((last, *earlier), system, affordable)
        inverse = _Inverse.of(known)
        eps = jnp.finfo(whole.dtype).eps

        def unfinished(c: _Iteration) -> Array:
            going = (c.step < self.max_steps) & (c.best_norm > self.tol)
            return going & ~c.indefinite & ~c.breakdown

        def body(c: _Iteration) -> _Iteration:
            z = inverse(c.residual)
            rz = vector.vdot(c.residual, z)
            # Rounding can cost an ill-conditioned inverse its definiteness. The residual itself
            # is then the direction, from there on.
            sound = c.sound & jnp.isfinite(rz) & (rz > 0)
            z = vector.where(sound, z, c.residual)
            rz = jnp.where(sound, rz, vector.vdot(c.residual, c.residual))
            factor = jnp.where(sound == c.sound, rz / c.rz, 0)
            direction = vector.axpy(factor, c.direction, z)
            image = system.operator.mv(direction)
            curvature = vector.vdot(direction, image)
            square = vector.vdot(direction, direction)
            quotient = curvature / square
            finite = jnp.isfinite(curvature)
            spectrum = vector.where(finite, c.spectrum.met(quotient), c.spectrum)
            positive = quotient > eps * jnp.maximum(spectrum.high, 0)
            good = finite & positive
            alpha = jnp.where(good, rz / curvature, 0)
            x = vector.axpy(alpha, direction, c.x)
            residual = vector.axpy(-alpha, image, c.residual)
            size = vector.length(residual)
            overflow = ~jnp.isfinite(size)
            good = good & ~overflow
            better = good & (size < c.best_norm)
            length = jnp.where(good, 1 / jnp.sqrt(square), 0)
            row = c.recorded % self.memory

            def record(rows: Array, leaf: Array) -> Array:
                return jax.lax.dynamic_update_index_in_dim(rows, length * leaf.ravel(), row, 0)

            return _Iteration(
                step=c.step + 1,
                x=x,
                residual=residual,
                direction=direction,
                rz=rz,
                sound=sound,
                best=vector.where(better, x, c.best),
                best_norm=jnp.where(better, size, c.best_norm),
                directions=jax.tree.map(record, c.directions, direction),
                images=jax.tree.map(record, c.images, image),
                recorded=c.recorded + good,
                spectrum=spectrum,
                indefinite=c.indefinite | (finite & ~positive),
                breakdown=~finite | overflow,
            )

        size = vector.length(first.residual)
        closer = size < whole
        zero = vector.zeros_like(system.rhs)
        blank = self.blank(system.rhs).directions

        def head(rows: Array, known: Array) -> Array:
            return rows.at[: len(known)].set(known)

        start = _Iteration(
            step=first.products,
            x=first.value,
            residual=first.residual,
            direction=zero,
            rz=jnp.ones_like(whole),
            sound=jnp.asarray(True),
            best=vector.where(closer, first.value, zero),
            best_norm=jnp.where(closer, size, whole),
            directions=jax.tree.map(head, blank, first.directions),
            images=jax.tree.map(head, blank, first.images),
            recorded=first.recorded,
            spectrum=first.spectrum,
            indefinite=first.indefinite,
            breakdown=first.breakdown,
        )
        end = jax.lax.while_loop(unfinished, body, start)
        solution = system.solution(
            end.best,
            end.best_norm,
            end.step,
            nonpositive=end.indefinite,
            breakdown=end.breakdown,
            spectrum=end.spectrum,
        )
        return eqx.tree_at(
            lambda s: s.recollection,
            solution,
            _extended(known, end, last),
            is_leaf=lambda leaf: leaf is None,
        )


class _Iteration(eqx.Module):
    step: Array
    x: PyTree
    residual: PyTree
    direction: PyTree
    rz: Array
    sound: Array
    best: PyTree
    best_norm: Array
    directions: PyTree
    images: PyTree
    recorded: Array
    spectrum: Spectrum
    indefinite: Array
    breakdown: Array


class _Start(eqx.Module):
    """The combination of earlier solutions with the least energy error, and what finding it told.

    `directions` and `images` have a row for each solution; `recorded` of them, the first ones, have
    positive curvature and are conjugate to each other.
    """

    value: PyTree
    residual: PyTree
    products: Int[Array, ""]
    directions: PyTree
    images: PyTree
    recorded: Int[Array, ""]
    spectrum: Spectrum
    indefinite: Bool[Array, ""]
    breakdown: Bool[Array, ""]

    @classmethod
    def among(
        cls,
        solutions: Sequence[PyTree],
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
            jax.tree.map(lambda a: jnp.where(known[:, None], a.reshape(len(a), -1), 0), tree)
            for tree in (stacked, images)
        )
        gram = _grams(basis, images)
        low_to_high, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
        curvature, rotation = low_to_high[::-1], vectors[:, ::-1].T
        directions, images = (
            jax.tree.map(lambda rows: _product(rotation, rows), tree) for tree in (basis, images)
        )
        rounding = 10 * jnp.finfo(curvature.dtype).eps * jnp.abs(curvature).max()
        positive = curvature > rounding
        share = jnp.where(
            positive, _dots(directions, system.rhs) / jnp.where(positive, curvature, 1), 0
        )
        highest, lowest = curvature[0], jnp.min(jnp.where(positive, curvature, jnp.inf))
        return cls(
            value=_combine(share, directions, system.rhs),
            residual=vector.sub(system.rhs, _combine(share, images, system.rhs)),
            products=jnp.where(affordable, jnp.sum(found, dtype=jnp.int32), 0),
            directions=directions,
            images=images,
            recorded=jnp.sum(positive, dtype=jnp.int32),
            spectrum=Spectrum(lowest, jnp.where(positive[0], highest, -jnp.inf)),
            indefinite=jnp.any(curvature < -rounding),
            breakdown=jnp.any(~finite),
        )


class _Inverse(eqx.Module):
    """The limited-memory BFGS inverse of pairs `S`, `Y`, starting from `γ I`.

    With `R` the upper triangle of `SᵀY`, `D` its diagonal and `W = R⁻ᵀ (D + γ YᵀY) R⁻¹`:

        P⁻¹ v = γ v + [S Y] M [S Y]ᵀ v,   M = [[W, −γ R⁻ᵀ], [−γ R⁻¹, 0]]

    Positive definite for any pairs with `s·y > 0`. `S` and `Y` stand in one matrix: an application
    is three products, each of them little work.
    """

    pairs: PyTree
    middle: Array
    gamma: Scalar

    @classmethod
    def of(cls, known: Recollection) -> "_Inverse":
        s, y = known.directions, known.images
        products, squares = _grams(s, y), _grams(y, y)
        rows = jnp.arange(len(products))
        used = rows >= len(products) - known.count
        diagonal = jnp.diagonal(products)
        triangle = jnp.where(used, 0, 1) * jnp.eye(len(products)) + jnp.triu(products)
        gamma = jnp.where(used[-1], diagonal[-1] / squares[-1, -1], 1)
        inverse = _inverted(triangle.astype(products.dtype))
        whole = inverse.T @ (jnp.diag(diagonal) + gamma * squares) @ inverse
        middle = jnp.block([[whole, -gamma * inverse.T], [-gamma * inverse, jnp.zeros_like(whole)]])
        return cls(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), s, y), middle, gamma)

    def __call__(self, v: PyTree) -> PyTree:
        coefficients = _product(self.middle, _dots(self.pairs, v))
        return vector.axpy(self.gamma, v, _combine(coefficients, self.pairs, v))


def _inverted(triangle: Array) -> Array:
    """The inverse of an upper triangular matrix, row by row from the last.

    Not LAPACK's: its threads spend a hundred times as much on a matrix of this size.
    """
    size = len(triangle)

    def row(k: Array, inverse: Array) -> Array:
        i = size - 1 - k
        unit = (jnp.arange(size) == i).astype(triangle.dtype)
        return inverse.at[i].set((unit - _product(triangle[i], inverse)) / triangle[i, i])

    return jax.lax.fori_loop(0, size, row, jnp.zeros_like(triangle))


def _orthonormal(solutions: Sequence[PyTree]) -> tuple[PyTree, Bool[Array, " rows"]]:
    """An orthonormal basis, stacked, with zeros for a solution that adds nothing; which do."""
    basis: list[PyTree] = []
    found = []
    for solution in solutions:
        length = vector.norm(solution)
        rest = vector.scale(1 / jnp.where(length > 0, length, 1), solution)
        for direction in basis * 2:
            rest = vector.axpy(-vector.vdot(direction, rest), direction, rest)
        size = vector.norm(rest)
        # What is left of a solution that did not move is rounding.
        new = jnp.isfinite(length) & (length > 0) & (size > 100 * jnp.finfo(size.dtype).eps)
        rest = vector.scale(1 / jnp.where(new, size, 1), rest)
        basis.append(vector.where(new, rest, vector.zeros_like(rest)))
        found.append(new)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *basis), jnp.stack(found)


def _extended(known: Recollection, end: _Iteration, last: PyTree) -> Recollection:
    """With the pairs of one more solve, written in a ring, and the solution that it started at."""
    memory = len(jax.tree.leaves(known.directions)[0])
    new = jnp.minimum(end.recorded, memory).astype(jnp.int32)
    old = (jnp.arange(memory) < memory - new)[:, None]

    def merge(rows: Array, ring: Array) -> Array:
        return jnp.where(old, jnp.roll(rows, -new, axis=0), jnp.roll(ring, -end.recorded, axis=0))

    return Recollection(
        directions=jax.tree.map(merge, known.directions, end.directions),
        images=jax.tree.map(merge, known.images, end.images),
        count=jnp.minimum(known.count + new, memory),
        solutions=jax.tree.map(
            lambda a, b: jnp.concatenate([b[None].astype(a.dtype), a[:-1]]), known.solutions, last
        ),
    )


def _sum(terms: PyTree) -> Array:
    return reduce(jnp.add, jax.tree.leaves(terms))


def _column(flags: Array, like: Array) -> Array:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _dots(rows: PyTree, v: PyTree) -> Array:
    """Inner products of every row with `v`, shape `(rows,)`."""
    return _sum(jax.tree.map(lambda a, b: _product(a, b.ravel()), rows, v))


def _grams(x: PyTree, y: PyTree) -> Array:
    """Inner products of all rows with all rows, shape `(rows, rows)`."""
    return _sum(jax.tree.map(lambda a, b: _product(a, b.T), x, y))


def _combine(coefficients: Array, rows: PyTree, like: PyTree) -> PyTree:
    """`Σ cᵢ rowᵢ`, a vector like `like`."""
    return jax.tree.map(
        lambda a, b: _product(coefficients.astype(a.dtype), a).reshape(b.shape), rows, like
    )
