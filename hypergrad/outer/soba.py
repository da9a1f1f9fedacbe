"""SOBA: one stochastic step each for the inner variable, the adjoint and the hyperparameters.

Dagréou, Ablin, Vaiter & Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms" (2022): the directions of `hypergrad.outer.single_loop` on one
mini-batch.
"""

import jax.numpy as jnp
import optax
from jaxtyping import PyTree, Scalar

from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.single_loop import (
    SingleLoopAlgorithm,
    SingleLoopState,
    inner_terms,
    outer_terms,
    polynomial_decay,
)
from hypergrad.restricted import RestrictedProblem

# One object for all: an optimizer made anew is another program to `jit`.
_DESCENT = optax.sgd(lambda step: 0.1 / jnp.sqrt(step + 1.0))


class SOBA(SingleLoopAlgorithm):
    """Single-loop stochastic bilevel optimization by plain mini-batch estimates.

    Converges at the rate of stochastic gradient descent with step sizes that decay like `k^-1/2`.
    One training mini-batch serves all three inner terms: use the batch policy "same".

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with
      `0.1 / sqrt(k + 1)`.
    - `step_size`: first step size of the inner parameters and of the adjoint; below
      `2 / λ_max(∂²f/∂w²)`. Default 0.1.
    - `exponent`: the step size at step `k` is `step_size / (k + 1)^exponent`. Default 0.5.
    - `radius`: the adjoint is kept within `radius ‖∂F/∂w‖`, in effect a lower bound `1 / radius` on
      the curvature. Default 1e3.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is the absolute norm of the mini-batch gradient; the linear residual
    is `‖∂²f/∂w² v + ∂F/∂w‖ / ‖∂F/∂w‖` on the mini-batch.
    """

    optimizer: optax.GradientTransformation = _DESCENT
    step_size: float | Scalar = 0.1
    exponent: float | Scalar = 0.5
    radius: float | Scalar = 1e3
    constraint: PyTree = None

    def _advance(
        self, here: RestrictedProblem, state: SingleLoopState, batches: Batches
    ) -> tuple[SingleLoopState, OuterInfo]:
        inner = inner_terms(here, state.adjoint)
        value, outer = outer_terms(here)
        rate = polynomial_decay(self.step_size, self.exponent, state.step)
        return self._all_moved(state, value, inner, outer, rate)
