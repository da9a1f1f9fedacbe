"""Forward mode: the derivative of the run, carried along with it.

`Z_t = ∂w_t/∂λ` obeys `Z_t = A_t Z_{t-1} + B_t`, and `dg/dλ = ∂g/∂λ + Z_Tᵀ ∂g/∂w` (Franceschi,
Donini, Frasconi & Pontil 2017). Nothing of the run is stored; one column of `Z` per hyperparameter
is carried, and one more for the growth of roundings (`hypergrad.unrolled.roundings`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.unrolled.base import UnrolledEstimator
from hypergrad.unrolled.effect import require_effect
from hypergrad.unrolled.roundings import Growth, rounding_error
from hypergrad.unrolled.run import Dynamics
from hypergrad.unrolled.stepped import Differentiated


class ForwardUnrolled(UnrolledEstimator):
    """The exact derivative of the T steps that are run, by forward mode.

    Time and memory are those of about as many runs as there are hyperparameters (scalar entries),
    and one more, whatever the number of steps: the choice for a few of them, up to about ten, or
    when the steps hold something that reverse mode cannot cross, such as a line search.

    **Arguments:** those of `UnrolledEstimator`.

    `info.error` estimates the rounding error, as in `Unrolled`. How much an unstable run multiplies
    its roundings is followed along one direction: in the first steps of such a run, before it turns
    into the one that grows most, the estimate may be several times too small. Entries of the
    derivative that are not finite come back as zero with `info.breakdown` set and an infinite
    `error`.
    """

    # Said here as well: type checkers take a module without one for a dataclass.
    __init__ = UnrolledEstimator.__init__

    def _differentiated(self, run: Dynamics) -> tuple[Differentiated, tuple]:
        name, unseen = type(self).__name__, self.unseen == "none"
        run = require_effect(run, 0, self.steps, estimator=name, forward=True, unseen=unseen)
        carried = advance(run, start_carried(run), self.steps)
        value, aux, cotangent, direct = run.outer_derivative(carried.x)
        grad, total = contract(cotangent, carried, direct)
        steps = jnp.asarray(self.steps, jnp.int32)
        error = rounding_error(run, self.steps, total, grad)
        found = Differentiated(run, value, aux, grad, steps, error)
        return found, (carried.x, carried.rest)


class Carried(NamedTuple):
    """What forward mode takes from one step to the next.

    - `x`, `rest`: the state.
    - `columns`: like `x` with one more leading axis: `Z`, a column for each entry of the
      hyperparameters, and last a direction along which roundings grow.
    - `growth`: how much they have grown.
    """

    x: PyTree
    rest: PyTree
    columns: PyTree
    growth: Growth


def start_carried(run: Dynamics) -> Carried:
    """`Z_0`, and no direction yet."""
    tangents = jax.vmap(lambda e: jax.jvp(run.start, (run.h,), (e,))[1])(_basis(run.h))
    columns = jax.tree.map(
        lambda z, a: jnp.concatenate([z, jnp.zeros_like(a)[None]]), tangents, run.x
    )
    # Zeros made inside a program must not reach a product as a constant (`hypergrad.linear`).
    columns = lax.optimization_barrier(columns)
    return Carried(run.x, run.rest, columns, Growth.none(run.x[0]))


def advance(run: Dynamics, carried: Carried, steps: int) -> Carried:
    """After `steps` steps."""
    entries = jax.tree.map(lambda e: jnp.concatenate([e, jnp.zeros_like(e[:1])]), _basis(run.h))

    def body(t: Array, carried: Carried) -> Carried:
        def along(column: PyTree, entry: PyTree) -> tuple:
            return jax.jvp(
                lambda x, h: run(x, carried.rest, h, t),
                (carried.x, run.h),
                (column, entry),
                has_aux=True,
            )

        x, columns, rest = jax.vmap(along, out_axes=(None, 0, None))(carried.columns, entries)
        before, after = _last(carried.columns), _last(columns)
        growth = carried.growth.after(x[0], vector.norm(after[0]) / vector.norm(before[0]))
        # Until it grows, the direction is that in which the step moves: where a run is unstable,
        # it moves along what grows.
        moved = vector.sub(x, carried.x)
        direction = vector.where(growth.now > 1, after, moved)
        length = vector.norm(direction[0])
        unit = vector.scale(1 / jnp.where(length > 0, length, 1), direction)
        columns = jax.tree.map(lambda a, d: a.at[-1].set(d), columns, unit)
        return Carried(x, rest, columns, growth)

    return lax.fori_loop(0, steps, body, carried)


def contract(cotangent: PyTree, carried: Carried, direct: PyTree) -> tuple[PyTree, Array]:
    """`direct + Zᵀ cotangent`, and by how much the relative roundings of its terms are multiplied.

    The second is a deviation, in the units of the first, for terms that round independently.
    """
    flat, unravel = ravel_pytree(direct)
    # The outer loss reads params, and not the step's own state.
    (cotangent, _), (columns, _) = cotangent, carried.columns
    tangents = jax.tree.map(lambda a: a[:-1], columns)
    indirect = jax.vmap(lambda z: vector.vdot(cotangent, z))(tangents).astype(flat.dtype)
    # Roundings of the tangents stay in their entries, or are spread over all: by chance either way.
    spread = vector.norm(cotangent) / max(vector.size(cotangent), 1) ** 0.5
    entries = jax.vmap(lambda z: vector.norm(jax.tree.map(jnp.multiply, cotangent, z)))(tangents)
    lengths = jnp.hypot(entries, spread * jax.vmap(vector.norm)(tangents)).astype(flat.dtype)
    # A rounding is spread evenly over one unit.
    total = (vector.norm(lengths) + vector.norm(flat)) / 12**0.5
    return unravel(flat + indirect), total * carried.growth.counted


def _last(columns: PyTree) -> PyTree:
    return jax.tree.map(lambda a: a[-1], columns)


def _basis(h: PyTree) -> PyTree:
    flat, unravel = ravel_pytree(h)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
