"""What SOBA, SABA and SRBA share: three directions that are sums over examples.

With `v` tracking `−(∂²f/∂w²)⁻¹ ∂F/∂w`, the three directions

    D_w = ∂f/∂w        D_v = ∂²f/∂w² v + ∂F/∂w        D_λ = (∂²f/∂w∂λ)ᵀ v + ∂F/∂λ

have mini-batch estimates without bias, so that all three variables can move at once. No inner loop,
no linear solve: a step costs four gradient-like calls.
"""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.moving import MovingAlgorithm, MovingState
from hypergrad.restricted import RestrictedProblem


class InnerTerms(eqx.Module):
    """The three sums over the training data: `∂f/∂w`, `∂²f/∂w² v`, `(∂²f/∂w∂λ)ᵀ v`."""

    gradient: PyTree
    curvature: PyTree
    mixed: PyTree


class OuterTerms(eqx.Module):
    """The two sums over the validation data: `∂F/∂w`, `∂F/∂λ`."""

    params: PyTree
    hparams: PyTree


def inner_terms(here: RestrictedProblem, adjoint: PyTree) -> InnerTerms:
    """All three terms from one linearisation of the residual.

    For an optimality map that is not a gradient its transposed Jacobian is used, which is what the
    adjoint equation holds.
    """
    gradient, pull = jax.vjp(here.residual, here.w, here.h)
    return InnerTerms(gradient, *pull(adjoint))


def outer_terms(here: RestrictedProblem) -> tuple[Scalar, OuterTerms]:
    """The outer loss and its two partial derivatives."""
    value, partials = jax.value_and_grad(here.outer_loss, argnums=(0, 1))(here.w, here.h)
    return value, OuterTerms(*partials)


def polynomial_decay(step_size: Array | float, exponent: Array | float, step: Array) -> Array:
    """`step_size / (step + 1)^exponent`."""
    return step_size * (step + 1.0) ** -exponent


def into_ball(adjoint: PyTree, gradient: PyTree, radius: Array | float) -> PyTree:
    """The adjoint scaled back to `‖v‖ <= radius ‖∂F/∂w‖`."""
    size = vector.norm(adjoint)
    limit = radius * vector.norm(gradient)
    return vector.scale(jnp.where(size > limit, limit / size, 1), adjoint)


class SingleLoopState(MovingState):
    """The common state and the adjoint `v`."""

    adjoint: PyTree


SingleLoop = TypeVar("SingleLoop", bound=SingleLoopState)


class SingleLoopAlgorithm(MovingAlgorithm):
    """A method that moves all three at once, and keeps the adjoint in a ball."""

    radius: eqx.AbstractVar[float | Scalar]

    def __check_init__(self) -> None:
        require_positive(type(self).__name__, "radius", self.radius)

    def _start(self, here: RestrictedProblem, batches: Batches) -> SingleLoopState:
        return self._with_adjoint(SingleLoopState, here)

    def _with_adjoint(
        self, kind: type[SingleLoop], here: RestrictedProblem, **own: Any
    ) -> SingleLoop:
        """The first state, whose adjoint has taken its first step, from zero, already.

        At `v = 0` that step needs no curvature product, and the operator is never applied to zeros.
        """
        _, outer = outer_terms(here)
        adjoint = vector.scale(-jnp.asarray(self.step_size), outer.params)
        return self._first(kind, here, adjoint=adjoint, **own)

    def _all_moved(
        self,
        state: SingleLoop,
        value: Scalar,
        inner: InnerTerms,
        outer: OuterTerms,
        rate: Array,
        *,
        calls: Array | int = 4,
        changes: dict[str, Any] | None = None,
    ) -> tuple[SingleLoop, OuterInfo]:
        """Move `w`, `v` and `λ` along the given directions, all from the same point."""
        direction = jax.tree.map(jnp.add, inner.curvature, outer.params)
        hypergradient = jax.tree.map(jnp.add, inner.mixed, outer.hparams)
        update = vector.scale(-rate, inner.gradient)
        adjoint = vector.axpy(-rate, direction, state.adjoint)
        scale = vector.norm(outer.params)
        return self._moved(
            state,
            hypergradient,
            value,
            fitted=False,
            changes={
                "params": eqx.apply_updates(state.params, update),
                "adjoint": into_ball(adjoint, outer.params, self.radius),
                **(changes or {}),
            },
            calls=calls,
            inner_residual=vector.norm(inner.gradient),
            linear_residual=vector.norm(direction) / jnp.where(scale > 0, scale, 1),
            step_size=rate,
        )
