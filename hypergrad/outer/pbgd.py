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

from hypergrad.expected import require_count, require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import Batches, OuterInfo, check_reach
from hypergrad.outer.moving import MovingAlgorithm, MovingState, move_along, start_moving
from hypergrad.outer.value_gap import gap_gradients, require_inner_loss
from hypergrad.problem import BilevelProblem

# One object for all: an optimizer made anew is another program to `jit`.
_DESCENT = optax.sgd(0.1)


class PBGD(MovingAlgorithm):
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

    optimizer: optax.GradientTransformation = _DESCENT
    inner_steps: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    multiplier: float | Scalar = 10.0
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("PBGD", "inner_steps", self.inner_steps)
        require_positive("PBGD", "multiplier", self.multiplier)

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
        along = found.penalised(self.multiplier)
        update = vector.scale(-self.step_size / self.multiplier, along.params)
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
