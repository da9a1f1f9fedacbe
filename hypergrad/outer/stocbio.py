"""stocBiO: an inner loop, and a Neumann series with a new mini-batch for each factor.

Ji, Yang & Liang, "Bilevel optimization: convergence analysis and enhanced design" (2021), algorithm
2. From the last inner solution, `D` steps of stochastic gradient descent; there the hypergradient
of `hypergrad.outer.neumann_estimate`; one step of the hyperparameters.
"""

from dataclasses import replace

import equinox as eqx
import optax
from jaxtyping import PyTree, Scalar

from hypergrad.expected import require_count
from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.inner_descent import inner_descent
from hypergrad.outer.moving import DESCENT, MovingAlgorithm, MovingState
from hypergrad.outer.neumann_estimate import neumann_sum
from hypergrad.restricted import RestrictedProblem


class StocBiO(MovingAlgorithm):
    """Stochastic bilevel optimizer with two loops.

    Each inner step and each factor of the series has a mini-batch of its own:
    `Minibatches(size, policy="independent", fits=inner_steps + products)`. (The paper lets the
    batches of later factors shrink; here all have one size.)

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `inner_steps`: `D`. Default 10.
    - `products`: `Q`, Hessian-vector products of the series. Its truncation leaves a bias that
      decays like `(1 − step_size μ)^(Q + 1)` with the least curvature `μ`. Default 10.
    - `step_size`: of the inner steps and of the series, `η`; at most `1 / λ_max(∂²f/∂w²)`.
      Default 0.1.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is the absolute norm of the last inner gradient.
    """

    optimizer: optax.GradientTransformation = DESCENT
    inner_steps: int = eqx.field(static=True, default=10)
    products: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("StocBiO", "inner_steps", self.inner_steps)
        require_count("StocBiO", "products", self.products, 0)

    def _advance(
        self, here: RestrictedProblem, state: MovingState, batches: Batches
    ) -> tuple[MovingState, OuterInfo]:
        w, residual = inner_descent(here, batches, self.inner_steps, self.step_size)
        here = replace(here, params=here.params_at(w))
        value, hypergradient = neumann_sum(
            here, batches, self.inner_steps, self.products, self.step_size
        )
        return self._moved(
            state,
            hypergradient,
            value,
            fitted=True,
            changes={"params": here.params},
            calls=self.inner_steps + self.products + 2,
            inner_residual=residual,
            inner_iterations=self.inner_steps,
        )
