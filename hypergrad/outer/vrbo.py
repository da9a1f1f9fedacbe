"""VRBO: gradient and hypergradient by the recursion of SPIDER, inside of an inner loop.

Yang, Ji & Liang, "Provably faster algorithms for bilevel optimization" (2021), algorithm 2. Every
`period` outer steps the two directions are computed on all data. An outer step moves the
hyperparameters; the inner loop after it then moves the params, and carries both directions along,
with one mini-batch `ξ` at two points:

    d_t = D(z_t; ξ_t) − D(z_{t−1}; ξ_t) + d_{t−1}

The hypergradient has all terms of the Neumann series of `hypergrad.outer.neumann_estimate`.
"""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_count
from hypergrad.linear import vector
from hypergrad.outer import loops
from hypergrad.outer.base import OuterInfo, optimizer_step
from hypergrad.outer.batches import Batches
from hypergrad.outer.inner_descent import on_fit
from hypergrad.outer.moving import DESCENT, MovingAlgorithm, MovingState
from hypergrad.outer.neumann_estimate import neumann_sum
from hypergrad.outer.recursive_momentum import Directions, recursion
from hypergrad.restricted import RestrictedProblem


class VRBOState(MovingState):
    """The common state and the two estimates."""

    directions: Directions


class VRBO(MovingAlgorithm):
    """Variance-reduced bilevel optimizer.

    Each inner step has a mini-batch for the gradient and one for each factor of the series:
    `Minibatches(size, policy="independent", fits=inner_steps * (1 + products))`. The validation
    mini-batch, and that of the mixed product, is one for all inner steps of an outer step.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `inner_steps`: of the params, per outer step. Default 3.
    - `products`: Hessian-vector products of the series. Default 10.
    - `step_size`: constant step size of the params and of the series, `η`; at most
      `1 / λ_max(∂²f/∂w²)`. Default 0.1.
    - `period`: outer steps from one pass over all data to the next. Default: as many as half of the
      training and validation mini-batches in a pass, divided by `inner_steps`.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is the absolute norm of the estimate of `∂f/∂w`; the outer loss is
    the mini-batch's at the last inner step.
    """

    optimizer: optax.GradientTransformation = DESCENT
    inner_steps: int = eqx.field(static=True, default=3)
    products: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    period: int | None = None
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("VRBO", "inner_steps", self.inner_steps)
        require_count("VRBO", "products", self.products, 0)
        if self.period is not None:
            require_count("VRBO", "period", self.period)

    def _start(self, here: RestrictedProblem, batches: Batches) -> VRBOState:
        zeros = vector.zeros_like(Directions(here.w, here.h))
        return self._first(VRBOState, here, directions=zeros)

    def _advance(
        self, here: RestrictedProblem, state: VRBOState, batches: Batches
    ) -> tuple[VRBOState, OuterInfo]:
        draws = 1 + self.products

        def estimate(
            data: Batches, fit: Array | int, params: PyTree, hparams: PyTree
        ) -> tuple[Scalar, Directions]:
            there = data.restrict(here.problem, params, hparams, here.key)
            gradient = on_fit(there, data, fit).residual()
            value, along = neumann_sum(there, data, fit + 1, self.products, self.step_size)
            return value, Directions(gradient, along)

        inner_passes, outer_passes = batches.passes
        half = (inner_passes + outer_passes) // (2 * self.inner_steps)
        period = max(half, 1) if self.period is None else self.period
        whole = state.step % period == 0
        first = loops.cond(
            whole,
            lambda: estimate(batches.everything, 0, state.params, state.hparams)[1],
            lambda: state.directions,
        )
        hparams, _, _ = optimizer_step(
            self.optimizer, state.optimizer_state, state.hparams, first.hparams, self.constraint
        )

        def inner_step(carry: tuple, t: Array) -> tuple[tuple, Scalar]:
            params, last_params, last_hparams, kept = carry
            value, new = estimate(batches, t * draws, params, hparams)
            _, old = estimate(batches, t * draws, last_params, last_hparams)
            kept = recursion(new, old, kept)
            moved = eqx.apply_updates(params, vector.scale(-self.step_size, kept.params))
            return (moved, params, hparams, kept), value

        start = (state.params, state.params, state.hparams, first)
        (params, _, _, kept), values = loops.scan(inner_step, start, jnp.arange(self.inner_steps))
        pass_calls = (draws + 1) * inner_passes + outer_passes
        return self._moved(
            state,
            first.hparams,
            values[-1],
            fitted=False,
            changes={"params": params, "directions": kept},
            calls=2 * self.inner_steps * (draws + 2) + jnp.where(whole, pass_calls, 0),
            inner_residual=vector.norm(kept.params),
            inner_iterations=self.inner_steps,
        )
