"""SUSTAIN: recursive momentum, and one random term of the Neumann series.

Khanduri, Zeng, Hong, Wai, Wang & Yang, "A near-optimal algorithm for stochastic bilevel
optimization via double-momentum" (2021), algorithm 1: both directions of
`hypergrad.outer.recursive_momentum`. The length of the series is drawn anew at each step, the same
for both points of the recursion, so that a step costs half the products of the whole series on
average, and the recursion has to take away the noise of the draw as well.
"""

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.expected import require_count
from hypergrad.outer.batches import Batches
from hypergrad.outer.neumann_estimate import neumann_term
from hypergrad.outer.recursive_momentum import DESCENT, RecursiveMomentum
from hypergrad.restricted import RestrictedProblem


class SUSTAIN(RecursiveMomentum):
    """Single-timescale double-momentum stochastic approximation.

    One mini-batch for the inner gradient and one for each factor of the series:
    `Minibatches(size, policy="independent", fits=products)`. Each is used at two points.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with
      `0.1 (k + 1)^(−1/3)`.
    - `products`: the length of the series is uniform on `0 … products − 1`. Default 10.
    - `step_size`: the inner step at step `k` is `step_size (k + 1)^(−1/3)`; the series has
      `step_size` itself, at most `1 / λ_max(∂²f/∂w²)`. Default 0.1.
    - `momentum`: the new mini-batch has the weight `momentum (k + 1)^(−2/3)`, the recursion the
      rest. Default 0.5.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is the absolute norm of the estimate of `∂f/∂w`. The lengths are
    drawn by the key of the step; without one, by its number.
    """

    optimizer: optax.GradientTransformation = DESCENT
    products: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    momentum: float | Scalar = 0.5
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("SUSTAIN", "products", self.products)

    def estimate(
        self, here: RestrictedProblem, batches: Batches, step: Array
    ) -> tuple[Scalar, PyTree]:
        """See `RecursiveMomentum.estimate`."""
        drawn = self.length(here, step)
        return neumann_term(here, batches, 1, self.products, self.step_size, drawn)

    def calls(self, here: RestrictedProblem, step: Array) -> Array:
        """See `RecursiveMomentum.calls`."""
        return self.length(here, step) + 2

    def length(self, here: RestrictedProblem, step: Array) -> Int[Array, ""]:
        """The number of factors at this step."""
        # The losses get the key itself, and with the numbers of the mini-batches, below `products`.
        given, number = (jax.random.key(0), step) if here.key is None else (here.key, self.products)
        return jax.random.randint(jax.random.fold_in(given, number), (), 0, self.products)
