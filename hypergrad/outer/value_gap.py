"""The gap of the value function: what BOME and PBGD push to zero.

    q(w, λ) = f(w, λ) − min_z f(z, λ)

is not negative, and zero exactly at the inner solutions. Its gradient needs no second derivative:
with `z` the end of some inner steps from `w`,

    ∂q/∂w = ∂f/∂w(w, λ),        ∂q/∂λ = ∂f/∂λ(w, λ) − ∂f/∂λ(z, λ)
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from hypergrad.expected import require_count
from hypergrad.linear import vector
from hypergrad.outer.base import OuterAlgorithm, OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.inner_descent import inner_descent
from hypergrad.outer.moving import MovingAlgorithm, MovingState
from hypergrad.outer.single_loop import OuterTerms, outer_terms
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem


class GapGradients(eqx.Module):
    """The outer loss, its partial derivatives and those of the gap, like `(params, hparams)`."""

    value: Scalar
    outer: OuterTerms
    gap: OuterTerms

    def penalised(self, multiplier: Array | float) -> OuterTerms:
        """The gradient of `F + multiplier q`."""
        return vector.axpy(multiplier, self.gap, self.outer)


def gap_gradients(
    here: RestrictedProblem, batches: Batches, steps: int, step_size: Array | float
) -> GapGradients:
    """At a point, with `steps` of inner descent; costs `steps + 3` gradients."""
    z, _ = inner_descent(here, batches, steps, step_size)
    by_w, by_h = jax.grad(here.inner_loss, argnums=(0, 1))(here.w, here.h)
    response = jax.grad(here.inner_loss, argnums=1)(z, here.h)
    value, outer = outer_terms(here)
    return GapGradients(value, outer, OuterTerms(by_w, vector.sub(by_h, response)))


def require_inner_loss(algorithm: OuterAlgorithm, problem: BilevelProblem) -> None:
    """Refuse problems that have only an optimality map.

    **Raises:** `ValueError`.
    """
    if problem.inner is None:
        raise ValueError(
            f"{type(algorithm).__name__} differentiates the inner loss with respect to the "
            "hyperparameters; this problem has only an optimality map. Give `inner`, or use SOBA."
        )


class ValueGapAlgorithm(MovingAlgorithm):
    """Params and hyperparameters move together along `∇F + multiplier ∇q`.

    Subclasses say by `weigh` what the multiplier is. `stationarity` is that of both together.
    """

    inner_steps: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        require_count(type(self).__name__, "inner_steps", self.inner_steps)

    @abc.abstractmethod
    def weigh(self, found: GapGradients) -> tuple[Array | float, Array | float]:
        """The multiplier, and the step size of the params."""

    def _start(self, here: RestrictedProblem, batches: Batches) -> MovingState:
        require_inner_loss(self, here.problem)
        return super()._start(here, batches)

    def _advance(
        self, here: RestrictedProblem, state: MovingState, batches: Batches
    ) -> tuple[MovingState, OuterInfo]:
        found = gap_gradients(here, batches, self.inner_steps, self.step_size)
        multiplier, rate = self.weigh(found)
        along = found.penalised(multiplier)
        update = vector.scale(-rate, along.params)
        state, info = self._moved(
            state,
            along.hparams,
            found.value,
            fitted=False,
            changes={"params": eqx.apply_updates(state.params, update)},
            calls=self.inner_steps + 3,
            inner_residual=vector.norm(found.gap.params),
            inner_iterations=self.inner_steps,
        )
        # Params that still move are no end: at an inner solution the hyperparameters stand still.
        both = jnp.hypot(info.stationarity, vector.norm(along.params))
        return state, eqx.tree_at(
            lambda i: i.stationarity, info, both.astype(info.stationarity.dtype)
        )
