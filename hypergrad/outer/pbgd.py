"""PBGD: gradient descent on the outer loss plus a fixed multiple of the gap of the value function.

Shen & Chen, "On penalty-based bilevel gradient descent method" (2023), algorithm 1 (V-PBGD). With
the gap `q` of `hypergrad.outer.value_gap`, params and hyperparameters move together along the
gradient of

    F(w, λ) + γ q(w, λ)

whose stationary points are, with `γ` large enough, those of the bilevel problem up to `O(1 / γ)`.
"""

import equinox as eqx
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_positive
from hypergrad.outer.moving import DESCENT
from hypergrad.outer.value_gap import GapGradients, ValueGapAlgorithm


class PBGD(ValueGapAlgorithm):
    """Penalty-based bilevel gradient descent on the value-function gap.

    Unlike `F2SA` it holds one set of params, which take a single step for each of the
    hyperparameters. Each step of the inner descent has its own mini-batch:
    `Minibatches(size, policy="independent", fits=inner_steps)`.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `inner_steps`: of descent to the response. What they leave of the way to it,
      `(1 − step_size μ)^inner_steps` with the least curvature `μ`, is missing in `∂q/∂λ` and biases
      the end. Default 10.
    - `step_size`: of these; the params descend `f + F / γ` with it, that is `F + γ f` with
      `step_size / γ`. Below `2 / λ_max(∂²f/∂w²)`. Default 0.1.
    - `multiplier`: `γ`. The bias of the hyperparameters falls like `1 / γ`, the noise of mini-batch
      differences grows like `γ`. Default 10.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The params are those of the penalised problem, `O(1 / γ)` from the inner solution. The inner
    residual reported is the absolute norm of `∂f/∂w` there.
    """

    optimizer: optax.GradientTransformation = DESCENT
    inner_steps: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    multiplier: float | Scalar = 10.0
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_positive("PBGD", "multiplier", self.multiplier)

    def weigh(self, found: GapGradients) -> tuple[Array | float, Array | float]:
        """See `ValueGapAlgorithm.weigh`."""
        return self.multiplier, self.step_size / self.multiplier
