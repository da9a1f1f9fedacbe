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

from hypergrad.expected import require_positive
from hypergrad.linear import vector
from hypergrad.outer.moving import DESCENT
from hypergrad.outer.value_gap import GapGradients, ValueGapAlgorithm


class BOME(ValueGapAlgorithm):
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

    optimizer: optax.GradientTransformation = DESCENT
    inner_steps: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    barrier: float | Scalar = 0.5
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_positive("BOME", "barrier", self.barrier)

    def weigh(self, found: GapGradients) -> tuple[Array, Array | float]:
        """See `ValueGapAlgorithm.weigh`."""
        square = vector.vdot(found.gap, found.gap)
        # Without a gap nothing is left to lower it.
        share = vector.vdot(found.outer, found.gap) / jnp.where(square > 0, square, 1)
        multiplier = jnp.where(square > 0, jnp.maximum(self.barrier - share, 0), 0)
        return multiplier, self.step_size
