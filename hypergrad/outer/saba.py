"""SABA: the single-loop method with the variance reduction of SAGA on every term.

Dagréou, Ablin, Vaiter & Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms" (2022). Each of the five sums of the directions (`∂f/∂w`,
`∂²f/∂w² v`, `(∂²f/∂w∂λ)ᵀ v`; `∂F/∂w`, `∂F/∂λ`) is estimated by

    new value on block i  −  remembered value on block i  +  mean of the remembered values

(Defazio, Bach & Lacoste-Julien 2014), whose variance vanishes as the iterates converge, so that
step sizes stay constant and the rate is that of gradient descent.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.moving import DESCENT
from hypergrad.outer.single_loop import (
    InnerTerms,
    OuterTerms,
    SingleLoopAlgorithm,
    SingleLoopState,
    inner_terms,
    outer_terms,
)
from hypergrad.restricted import RestrictedProblem


class Memory(eqx.Module):
    """The last value of a sum's term on each block of the data, and their mean."""

    slots: PyTree
    mean: PyTree
    seen: Bool[Array, " blocks"]


def empty_memory(like: PyTree, blocks: int) -> Memory:
    """A memory of `blocks` unseen values shaped `like`."""
    slots = jax.tree.map(lambda x: jnp.zeros((blocks, *x.shape), x.dtype), like)
    return Memory(slots, jax.tree.map(jnp.zeros_like, like), jnp.zeros(blocks, bool))


def refresh(memory: Memory, number: Int[Array, ""] | int, new: PyTree) -> tuple[PyTree, Memory]:
    """The variance-reduced estimate from block `number`, and the memory with `new` in its place.

    While blocks are still unseen the mean is over those seen: zeros standing for unseen blocks
    would bias every direction towards zero for the whole first epoch.
    """
    first = ~memory.seen[number]
    count = jnp.sum(memory.seen)

    def estimate(slots: Array, mean: Array, value: Array) -> Array:
        return jnp.where(first, (count * mean + value) / (count + 1), value - slots[number] + mean)

    def new_mean(slots: Array, mean: Array, value: Array) -> Array:
        share = jnp.where(first, value - mean, value - slots[number])
        return mean + share / jnp.where(first, count + 1, count)

    tree = (memory.slots, memory.mean, new)
    return (
        jax.tree.map(lambda *x: estimate(*x).astype(x[1].dtype), *tree),
        Memory(
            jax.tree.map(lambda s, v: s.at[number].set(v), memory.slots, new),
            jax.tree.map(lambda *x: new_mean(*x).astype(x[1].dtype), *tree),
            memory.seen.at[number].set(True),
        ),
    )


class SABAState(SingleLoopState):
    """The single-loop state and the two memories."""

    inner_memory: Memory
    outer_memory: Memory


class SABA(SingleLoopAlgorithm):
    """Single-loop stochastic bilevel optimization with variance reduction.

    The mini-batches must be the blocks of a fixed partition of the data
    (`Minibatches(size, blocks=True, policy="same")`), or all of it. Memory: for each training block
    two vectors like `params` and one like `hparams`, for each validation block one of each.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `step_size`: constant step size of the inner parameters and of the adjoint; below
      `2 / λ_max(∂²f/∂w²)`, and safely a third of that. Default 0.1.
    - `radius`: the adjoint is kept within `radius ‖∂F/∂w‖`. Default 1e3.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    **Raises:** `ValueError` if the mini-batches are not blocks of a fixed partition.
    """

    optimizer: optax.GradientTransformation = DESCENT
    step_size: float | Scalar = 0.1
    radius: float | Scalar = 1e3
    constraint: PyTree = None

    def _start(self, here: RestrictedProblem, batches: Batches) -> SABAState:
        if batches.inner_count == 0 or batches.outer_count == 0:
            raise ValueError(
                "SABA remembers one value per block of the data: expected mini-batches from a "
                "fixed partition (`Minibatches(size, blocks=True)`), received independent draws."
            )
        w, h = vector.zeros_like((here.w, here.h))
        return self._with_adjoint(
            SABAState,
            here,
            inner_memory=empty_memory(InnerTerms(w, w, h), batches.inner_count),
            outer_memory=empty_memory(OuterTerms(w, h), batches.outer_count),
        )

    def _advance(
        self, here: RestrictedProblem, state: SABAState, batches: Batches
    ) -> tuple[SABAState, OuterInfo]:
        inner = inner_terms(here, state.adjoint)
        value, outer = outer_terms(here)
        inner, inner_memory = refresh(state.inner_memory, batches.inner_number, inner)
        outer, outer_memory = refresh(state.outer_memory, batches.outer_number, outer)
        rate = jnp.asarray(self.step_size, value.dtype)
        memories = {"inner_memory": inner_memory, "outer_memory": outer_memory}
        return self._all_moved(state, value, inner, outer, rate, changes=memories)
