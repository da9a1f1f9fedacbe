"""Estimates that remember: what MRBO and SUSTAIN share.

The recursive momentum of Cutkosky & Orabona, "Momentum-based variance reduction in non-convex SGD"
(2019). An estimate `d` of a direction `D` follows, with one mini-batch `ξ` at two points,

    d_k = D(z_k; ξ_k) + (1 − a_k) ( d_{k−1} − D(z_{k−1}; ξ_k) )

With `a = 1` it is the mini-batch estimate, with `a = 0` the recursion of SARAH and SPIDER. In
between its variance falls as the steps do, without a pass over all data.
"""

from abc import abstractmethod
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.inner_descent import on_fit
from hypergrad.outer.moving import MovingAlgorithm, MovingState
from hypergrad.outer.single_loop import polynomial_decay
from hypergrad.restricted import RestrictedProblem

# Steps that fall like `k^-1/3` and weights like their squares: the papers' rates.
DECAY = 1 / 3
# One object for both: an optimizer made anew is another program to `jit`.
DESCENT = optax.sgd(lambda step: 0.1 * (step + 1.0) ** -DECAY)


class Directions(eqx.Module):
    """What `params` and `hparams` move against: `∂f/∂w`, and a hypergradient."""

    params: PyTree
    hparams: PyTree


def recursion(new: PyTree, old: PyTree, kept: PyTree, forget: Array | float = 0.0) -> PyTree:
    """`new + (1 − forget) (kept − old)`."""
    return jax.tree.map(lambda n, o, d: n + (1 - forget) * (d - o), new, old, kept)


class MomentumState(MovingState):
    """The common state, the point before, and the estimates there."""

    last_params: PyTree
    last_hparams: PyTree
    directions: Directions


class RecursiveMomentum(MovingAlgorithm):
    """The base of the methods with recursive momentum: they say how to estimate a hypergradient.

    Both estimates at step `k` use the weight `min(1, momentum (k + 1)^(−2/3))`, and 1 at the first
    step; the inner step size is `step_size (k + 1)^(−1/3)`.
    """

    momentum: eqx.AbstractVar[float | Scalar]

    def __check_init__(self) -> None:
        require_positive(type(self).__name__, "momentum", self.momentum)

    @abstractmethod
    def estimate(
        self, here: RestrictedProblem, batches: Batches, step: Array
    ) -> tuple[Scalar, PyTree]:
        """The outer loss and a hypergradient, on the same batches wherever `here` is."""

    @abstractmethod
    def calls(self, here: RestrictedProblem, step: Array) -> Array | int:
        """Gradient-like evaluations of `estimate`."""

    def _start(self, here: RestrictedProblem, batches: Batches) -> MomentumState:
        zeros = vector.zeros_like(Directions(here.w, here.h))
        return self._first(
            MomentumState,
            here,
            last_params=here.params,
            last_hparams=here.hparams,
            directions=zeros,
        )

    def _advance(
        self, here: RestrictedProblem, state: MomentumState, batches: Batches
    ) -> tuple[MomentumState, OuterInfo]:
        def directions(at: RestrictedProblem) -> tuple[Scalar, Directions]:
            value, hypergradient = self.estimate(at, batches, state.step)
            return value, Directions(on_fit(at, batches, 0).residual(), hypergradient)

        value, new = directions(here)
        _, old = directions(replace(here, params=state.last_params, hparams=state.last_hparams))
        weight = polynomial_decay(self.momentum, 2 * DECAY, state.step)
        forget = jnp.where(state.step == 0, 1, jnp.minimum(weight, 1))
        kept = recursion(new, old, state.directions, forget)
        rate = polynomial_decay(self.step_size, DECAY, state.step)
        update = vector.scale(-rate, kept.params)
        return self._moved(
            state,
            kept.hparams,
            value,
            fitted=False,
            changes={
                "params": eqx.apply_updates(state.params, update),
                "last_params": state.params,
                "last_hparams": state.hparams,
                "directions": kept,
            },
            calls=2 * (1 + self.calls(here, state.step)),
            inner_residual=vector.norm(kept.params),
            step_size=rate,
        )
