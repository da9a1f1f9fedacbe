"""Forward mode: the derivative of the run, carried along with it.

`Z_t = ∂w_t/∂λ` obeys `Z_t = A_t Z_{t-1} + B_t`, and `dg/dλ = ∂g/∂λ + Z_Tᵀ ∂g/∂w` (Franceschi,
Donini, Frasconi & Pontil 2017). Nothing of the run is stored; one column of `Z` per hyperparameter
is carried.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from hypergrad.linear import vector
from hypergrad.unrolled.base import UnrolledEstimator
from hypergrad.unrolled.effect import require_effect
from hypergrad.unrolled.reverse import rounding_error
from hypergrad.unrolled.run import Dynamics
from hypergrad.unrolled.stepped import Differentiated


class ForwardUnrolled(UnrolledEstimator):
    """The exact derivative of the T steps that are run, by forward mode.

    Time and memory are those of about as many runs as there are hyperparameters (scalar entries),
    whatever the number of steps: the choice for a few of them, up to about ten, or when the steps
    hold something that reverse mode cannot cross, such as a line search.

    **Arguments:** those of `UnrolledEstimator`.

    `info.error` estimates the rounding error, as in `Unrolled`. Entries of the derivative that are
    not finite come back as zero with `info.breakdown` set and an infinite `error`.
    """

    # Said here as well: type checkers take a module without one for a dataclass.
    __init__ = UnrolledEstimator.__init__

    def _differentiated(self, run: Dynamics) -> tuple[Differentiated, tuple]:
        name, unseen = type(self).__name__, self.unseen == "none"
        run = require_effect(run, 0, self.steps, estimator=name, forward=True, unseen=unseen)
        x, rest, tangents = advance_tangents(run, start_tangents(run), self.steps)
        value, aux, cotangent, direct = run.outer_derivative(x)
        grad, total = contract(cotangent, tangents, direct)
        steps = jnp.asarray(self.steps, jnp.int32)
        error = rounding_error(run, self.steps, total, grad)
        return Differentiated(run, value, aux, grad, steps, error), (x, rest)


def start_tangents(run: Dynamics) -> PyTree:
    """`Z_0`, like the start with one more leading axis over all entries of the hyperparameters."""
    tangents = jax.vmap(lambda e: jax.jvp(run.start, (run.h,), (e,))[1])(_basis(run.h))
    # Zeros made inside a program must not reach a product as a constant (`hypergrad.linear`).
    return lax.optimization_barrier(tangents)


def advance_tangents(run: Dynamics, tangents: PyTree, steps: int) -> tuple[PyTree, PyTree, PyTree]:
    """The run's end after `steps` steps, and `Z` there."""
    basis = _basis(run.h)

    def body(t: Array, carry: tuple) -> tuple:
        x, rest, tangents = carry

        def along(tangent: PyTree, direction: PyTree) -> tuple:
            return jax.jvp(
                lambda x, h: run(x, rest, h, t), (x, run.h), (tangent, direction), has_aux=True
            )

        new_x, tangents, rest = jax.vmap(along, out_axes=(None, 0, None))(tangents, basis)
        return new_x, rest, tangents

    return lax.fori_loop(0, steps, body, (run.x, run.rest, tangents))


def contract(cotangent: PyTree, tangents: PyTree, direct: PyTree) -> tuple[PyTree, Array]:
    """`direct + Zᵀ cotangent`, and by how much the relative roundings of its terms are multiplied.

    The second is a deviation, in the units of the first, for terms that round independently.
    """
    flat, unravel = ravel_pytree(direct)
    # The outer loss reads params, and not the step's own state.
    (cotangent, _), (tangents, _) = cotangent, tangents
    indirect = jax.vmap(lambda z: vector.vdot(cotangent, z))(tangents).astype(flat.dtype)
    # Roundings of the tangents stay in their entries, or are spread over all: by chance either way.
    spread = vector.norm(cotangent) / max(vector.size(cotangent), 1) ** 0.5
    entries = jax.vmap(lambda z: vector.norm(jax.tree.map(jnp.multiply, cotangent, z)))(tangents)
    lengths = jnp.hypot(entries, spread * jax.vmap(vector.norm)(tangents)).astype(flat.dtype)
    # A rounding is spread evenly over one unit.
    total = (vector.norm(lengths) + vector.norm(flat)) / 12**0.5
    return unravel(flat + indirect), total


def _basis(h: PyTree) -> PyTree:
    flat, unravel = ravel_pytree(h)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
