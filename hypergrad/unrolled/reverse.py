"""Reverse mode through the whole run, with checkpoints.

For steps `w_t = Φ_t(w_{t-1}, λ)`, `A_t = ∂Φ_t/∂w`, `B_t = ∂Φ_t/∂λ`:

    a_T = ∂g/∂w,    dg/dλ = ∂g/∂λ + Σ_t B_tᵀ a_t + (∂w_0/∂λ)ᵀ a_0,    a_{t-1} = A_tᵀ a_t

(Maclaurin, Duvenaud & Adams 2015; Franceschi et al. 2017). Momenta are part of `w` here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.unrolled.checkpointing import CheckpointSchedule, schedule
from hypergrad.unrolled.roundings import growth_by_adjoints
from hypergrad.unrolled.run import Dynamics


class Reversed(NamedTuple):
    """What one reverse pass gives.

    - `value`, `aux`: of the outer loss at the end.
    - `grad`: direct derivative plus the contributions of the steps, in at least float32.
    - `adjoint`: at the start of the pass; meaningful only if `intact`.
    - `intact`: everything met was finite.
    - `differentiated`: steps whose contribution is in `grad`.
    - `contributions`: `‖B_tᵀ a_t‖` for each step in the order of time.
    - `adjoints`: `‖a_t‖` from the start of the pass to its end, one more than steps.
    - `total`: the norms of all terms of `grad` added up, each times `growth` of what it is made of.
    - `growth`: of roundings from the start of the pass (`hypergrad.unrolled.roundings`).
    - `x`, `rest`: the end of the run.
    """

    value: Scalar
    aux: PyTree
    grad: PyTree
    adjoint: PyTree
    intact: Array
    differentiated: Int[Array, ""]
    contributions: Array
    adjoints: Array
    total: Scalar
    growth: Scalar
    x: PyTree
    rest: PyTree


def reverse(
    run: Dynamics,
    x: PyTree,
    rest: PyTree,
    first: int | Array,
    steps: int,
    memory: int | None,
    offload: bool = False,
) -> Reversed:
    """Run `steps` steps, of which the earliest is number `first`, and pull the outer loss back.

    With `offload` the stored states lie in the host's memory.
    """
    h = run.h
    chosen = plan(run, steps, memory)
    block, tail = chosen.block, chosen.tail

    # What is left over, or a run that is one block, is pulled back right after it is run; other
    # blocks are run again, in a loop.
    blocks = 0 if chosen.blocks == 1 and not tail else chosen.blocks
    tail = steps - blocks * block

    away = partial(_placed, space=jax.memory.Space.Host) if offload else lambda tree: tree

    def stored(slots: PyTree, i: Array | int) -> PyTree:
        held = _read(slots, i)
        return _placed(held, space=jax.memory.Space.Device) if offload else held

    moves, ready = jnp.asarray(chosen.moves), jnp.asarray(chosen.ready)

    def make_moves(begin: Array | int, end: Array | int, slots: PyTree) -> PyTree:
        if not len(chosen.moves):
            return slots

        def move(i: Array, slots: PyTree) -> PyTree:
            source, target, at, count = moves[i]
            at = first + at * block
            x, rest = stored(slots, source)
            end = run.advance(x, rest, h, at, at + count * block)
            return _write(slots, target, away(end))

        return lax.fori_loop(begin, end, move, slots)

    def linearise(size: int, held: PyTree, begin: Array | int) -> tuple:
        """The end of a block, and its pull-back to start, hyperparameters and probes."""
        x, rest = held

        def run_block(x: PyTree, h: PyTree, probes: Array) -> PyTree:
            def body(carry: tuple, at: tuple) -> tuple:
                x, rest = carry
                t, probe = at
                return run(_tap_state(x, probe[:3]), rest, _tap(h, probe[3]), t), None

            return lax.scan(body, (x, rest), (begin + jnp.arange(size), probes))[0]

        probes = jnp.broadcast_to(nothing, (size, 4))
        return jax.vjp(run_block, x, h, probes, has_aux=True)

    def collect(size: int, pull: Callable, at: Array | int, carry: tuple) -> tuple:
        adjoint, grad, intact, count, norms = carry
        adjoint, contribution, block_norms = pull(adjoint)
        intact = intact & vector.all_finite(contribution)
        grad = jax.tree.map(lambda g, c: g + jnp.where(intact, c, 0), grad, contribution)
        # Where no cotangent passed, the zeros that come back lie on no mesh.
        block_norms = jnp.broadcast_to(nothing, block_norms.shape) + block_norms
        norms = lax.dynamic_update_slice_in_dim(norms, block_norms, at, 0)
        count = count + jnp.where(intact, size, 0)
        return adjoint, grad, intact & vector.all_finite(adjoint), count, norms

    # From a value of this run, so that it lies on the same mesh.
    nothing = jnp.zeros_like(vector.norm(x))
    slots, moved, end = None, 0, (x, rest)
    if blocks:
        # The forward sweep: slot 0 holds the start, and moves are made until the last block is
        # ready.
        slots = jax.tree.map(lambda a: jnp.broadcast_to(a, (chosen.slots, *a.shape)), end)
        slots = away(slots)
        moved, slot = chosen.ready[-1].tolist()
        slots = make_moves(0, moved, slots)
        at = first + (blocks - 1) * block
        x, rest = stored(slots, slot)
        end = run.advance(x, rest, h, at, at + block)
    if tail:
        end_x, pull_tail, end_rest = linearise(tail, end, first + blocks * block)
    else:
        end_x, end_rest = end

    value, aux, adjoint, direct = run.outer_derivative(end_x)
    at_end = jnp.stack([vector.norm(adjoint), vector.norm(adjoint[0]), vector.norm(end_x[0])])
    intact = vector.all_finite((adjoint, direct))
    direct = jax.tree.map(lambda d: jnp.where(jnp.isfinite(d), d, 0), direct)
    norms = jnp.broadcast_to(nothing, (steps, 4))
    carry = (adjoint, direct, intact, jnp.zeros((), jnp.int32), norms)
    if tail:
        carry = collect(tail, pull_tail, blocks * block, carry)
    if blocks:

        def earlier(i: Array, loop: tuple) -> tuple:
            slots, moved, carry = loop
            b = blocks - 1 - i
            needed, slot = ready[b]
            slots = make_moves(moved, needed, slots)
            _, pull, _ = linearise(block, stored(slots, slot), first + b * block)
            return slots, needed, collect(block, pull, b * block, carry)

        loop = (slots, jnp.asarray(moved, jnp.int32), carry)
        _, _, carry = lax.fori_loop(0, blocks, earlier, loop)
    adjoint, grad, intact, count, norms = carry
    contributions = norms[:, 3]
    adjoints, of_params, sizes = jnp.concatenate([norms[:, :3], at_end[None]]).T
    growth = growth_by_adjoints(sizes, of_params)
    total = jnp.sum(jnp.append(contributions, vector.norm(direct)) * growth)
    return Reversed(
        value,
        aux,
        grad,
        adjoint,
        intact,
        count,
        contributions,
        adjoints,
        total,
        growth[0],
        end_x,
        end_rest,
    )


def plan(run: Dynamics, steps: int, memory: int | None) -> CheckpointSchedule:
    """The schedule for `steps` steps of this run, from the sizes found by tracing."""

    def kept(size: int) -> int:
        """Bytes that `size` steps leave for their derivative, loop invariants counted once."""

        def pullback(x: PyTree, rest: PyTree, h: PyTree) -> Any:
            def steps_of_block(x: PyTree, h: PyTree) -> PyTree:
                def body(carry: tuple, t: Array) -> tuple:
                    return run(carry[0], carry[1], h, t), None

                return lax.scan(body, (x, rest), jnp.arange(size))[0][0]

            return jax.vjp(steps_of_block, x, h)[1]

        return _nbytes(jax.eval_shape(pullback, run.x, run.rest, run.h))

    state_bytes = _nbytes((run.x, run.rest))
    step_bytes = kept(3) - kept(2) if steps > 1 else 1
    return schedule(steps, state_bytes, step_bytes, memory)


@jax.custom_vjp
def _tap(x: PyTree, probe: Array) -> PyTree:
    """`x`; the cotangent of `probe` is the norm of the cotangent that passes here."""
    return x


def _tap_forward(x: PyTree, probe: Array) -> tuple:
    return x, probe


def _tap_backward(probe: Array, cotangent: PyTree) -> tuple:
    # Parameters and hyperparameters may have different dtypes.
    return cotangent, jnp.sqrt(vector.vdot(cotangent, cotangent)).astype(probe.dtype)


_tap.defvjp(_tap_forward, _tap_backward)


@jax.custom_vjp
def _tap_state(x: PyTree, probe: Array) -> PyTree:
    """`x`; the cotangent of `probe`: norms of the cotangent, of the params' part, of the params."""
    return x


def _tap_state_forward(x: PyTree, probe: Array) -> tuple:
    return x, (vector.length(x[0]), probe)


def _tap_state_backward(kept: tuple, cotangent: PyTree) -> tuple:
    size, probe = kept
    norms = [vector.length(cotangent), vector.length(cotangent[0]), size]
    return cotangent, jnp.stack([a.astype(probe.dtype) for a in norms])


_tap_state.defvjp(_tap_state_forward, _tap_state_backward)


def _placed(tree: PyTree, space: Any) -> PyTree:
    """The floating-point arrays there; counters and keys stay where they are."""
    return jax.tree.map(lambda a: jax.device_put(a, space) if eqx.is_inexact_array(a) else a, tree)


def _read(slots: PyTree, i: Array | int) -> PyTree:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), slots)


def _write(slots: PyTree, i: Array, value: PyTree) -> PyTree:
    return jax.tree.map(lambda a, v: lax.dynamic_update_index_in_dim(a, v, i, 0), slots, value)


def _nbytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
