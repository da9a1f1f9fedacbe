"""BOME: descend the outer loss as far as the gap of the value function allows.

Ye, Liu, Wright, Stone & Liu, "BOME! Bilevel optimization made easy: a simple first-order approach"
(2022), algorithm 1. With the gap `q` of `hypergrad.outer.value_gap`, params and hyperparameters
move together along

    ∇F + s ∇q,        s = max( η − ⟨∇F, ∇q⟩ / ‖∇q‖², 0 )

the direction next to `∇F` along which `q` falls at least like `η ‖∇q‖²` (a dynamic barrier, `φ = η
‖∇q‖²`). First derivatives only, no multiplier to choose.
"""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_count, require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import Batches, OuterInfo, check_reach
from hypergrad.outer.moving import MovingAlgorithm, MovingState, move_along, start_moving
from hypergrad.outer.value_gap import gap_gradients, require_inner_loss
from hypergrad.problem import BilevelProblem

# One object for all: an optimizer made anew is another program to `jit`.
_DESCENT = optax.sgd(0.1)


class BOME(MovingAlgorithm):
    """Bilevel optimization made easy: a dynamic barrier on the gap of the value function.

    Published for full batches, and used with mini-batches in the literature since. Each inner step
    has its own batch (`Minibatches(size, policy="independent", fits=inner_steps)`). Noise enters
    the multiplier, which divides by `‖∇q‖²`: the smaller the gap, the larger the batches needed.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `inner_steps`: of descent to the response `z`. What they leave of the way to it,
      `(1 − step_size μ)^inner_steps` with the least curvature `μ`, is missing in `∂q/∂λ` and biases
      the end. Default 10.
    - `step_size`: of these and of the params, the paper's `α` and `ξ`; below
      `2 / λ_max(∂²f/∂w²)`, and smaller where the multiplier grows. Default 0.1.
    - `barrier`: `η`. Default 0.5.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The params are those of the penalised problem: near the inner solution, pulled towards a lower
    outer loss. The inner residual reported is the absolute norm of `∂f/∂w` there.
    """

    optimizer: optax.GradientTransformation = _DESCENT
    inner_steps: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    barrier: float | Scalar = 0.5
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("BOME", "inner_steps", self.inner_steps)
        require_positive("BOME", "barrier", self.barrier)

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> MovingState:
        """See `OuterAlgorithm.init`.

        **Raises:** `ValueError` if the problem has no inner loss, only an optimality map.
        """
        require_inner_loss(self, problem)
        check_reach(self, problem, params, hparams, batches, key)
        return start_moving(MovingState, self, params, hparams)

    def step(
        self,
        problem: BilevelProblem,
        state: MovingState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[MovingState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        here = batches.restrict(problem, state.params, state.hparams, key)
        found = gap_gradients(here, batches, self.inner_steps, self.step_size)
        square = vector.vdot(found.gap, found.gap)
        # Without a gap nothing is left to lower it.
        share = vector.vdot(found.outer, found.gap) / jnp.where(square > 0, square, 1)
        multiplier = jnp.where(square > 0, jnp.maximum(self.barrier - share, 0), 0)
        along = found.penalised(multiplier)
        update = vector.scale(-self.step_size, along.params)
        return move_along(
            self,
            state,
            along.hparams,
            found.value,
            fitted=False,
            changes={"params": eqx.apply_updates(state.params, update)},
            calls=self.inner_steps + 3,
            inner_residual=vector.norm(found.gap.params),
            inner_iterations=self.inner_steps,
        )
