"""MRBO: a single loop whose gradient and hypergradient have recursive momentum.

Yang, Ji & Liang, "Provably faster algorithms for bilevel optimization" (2021), algorithm 1: both
directions of `hypergrad.outer.recursive_momentum`, with all terms of the Neumann series of
`hypergrad.outer.neumann_estimate`.
"""

import equinox as eqx
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_count
from hypergrad.outer.batches import Batches
from hypergrad.outer.neumann_estimate import neumann_sum
from hypergrad.outer.recursive_momentum import DESCENT, RecursiveMomentum
from hypergrad.restricted import RestrictedProblem


class MRBO(RecursiveMomentum):
    """Momentum-based recursive bilevel optimizer.

    One mini-batch for the inner gradient and one for each factor of the series:
    `Minibatches(size, policy="independent", fits=1 + products)`. Each is used at two points.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with
      `0.1 (k + 1)^(−1/3)`.
    - `products`: Hessian-vector products of the series. Default 10.
    - `step_size`: the inner step at step `k` is `step_size (k + 1)^(−1/3)`; the series has
      `step_size` itself, at most `1 / λ_max(∂²f/∂w²)`. Default 0.1.
    - `momentum`: the new mini-batch has the weight `momentum (k + 1)^(−2/3)`, the recursion the
      rest. Default 0.5.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is the absolute norm of the estimate of `∂f/∂w`.
    """

    optimizer: optax.GradientTransformation = DESCENT
    products: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    momentum: float | Scalar = 0.5
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("MRBO", "products", self.products, 0)

    def estimate(
        self, here: RestrictedProblem, batches: Batches, step: Array
    ) -> tuple[Scalar, PyTree]:
        """See `RecursiveMomentum.estimate`."""
        return neumann_sum(here, batches, 1, self.products, self.step_size)

    def calls(self, here: RestrictedProblem, step: Array) -> int:
        """See `RecursiveMomentum.calls`."""
        return self.products + 2
