"""F2SA: a bilevel method from first derivatives only.

Kwon, Kwon, Wright & Nowak, "A fully first-order method for stochastic bilevel optimization" (2023).
With a multiplier `s` the value-function penalty

    L_s(λ) = min_y [ F(y, λ) + s f(y, λ) ]  −  s min_z f(z, λ)

has the gradient

    ∂F/∂λ(y, λ) + s ( ∂f/∂λ(y, λ) − ∂f/∂λ(z, λ) )

at its two minimisers, which tends to the hypergradient like `1/s`. No Hessian-vector product and no
mixed product is ever formed, at the price of a second copy of the parameters, a bias of order
`1/s`, and a difference of two nearly equal gradients, amplified by `s`: in float32 keep `s` below
about 1e3.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_count, require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.inner_descent import on_fit
from hypergrad.outer.moving import DESCENT, MovingAlgorithm, MovingState
from hypergrad.outer.value_gap import require_inner_loss
from hypergrad.restricted import RestrictedProblem


class F2SAState(MovingState):
    """The common state, whose `params` minimise the inner loss, and more.

    - `penalised`: the minimiser of `F + s f`.
    """

    penalised: PyTree


class F2SA(MovingAlgorithm):
    """Fully first-order stochastic approximation.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `inner_steps`: gradient steps of each of the two inner variables per outer step. Default 10.
    - `step_size`: of the inner steps. The penalised variable descends `f + F / s` with it, that is
      `F + s f` with `step_size / s`: its step shrinks as its objective steepens. Default 0.1.
    - `multiplier`: `s` at the first step. Default 10.
    - `growth`: `s` at step `k` is `multiplier (k + 1)^growth`. Default 1/7, the paper's; 0 keeps it
      fixed.
    - `most`: `s` never exceeds it. Default 1e3.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The inner residual reported is the absolute norm of the last gradient of `f`.
    """

    optimizer: optax.GradientTransformation = DESCENT
    inner_steps: int = eqx.field(static=True, default=10)
    step_size: float | Scalar = 0.1
    multiplier: float | Scalar = 10.0
    growth: float | Scalar = 1 / 7
    most: float | Scalar = 1e3
    constraint: PyTree = None

    def __check_init__(self) -> None:
        require_count("F2SA", "inner_steps", self.inner_steps)
        require_positive("F2SA", "multiplier", self.multiplier)
        require_positive("F2SA", "most", self.most)

    def _start(self, here: RestrictedProblem, batches: Batches) -> F2SAState:
        require_inner_loss(self, here.problem)
        return self._first(F2SAState, here, penalised=here.params)

    def _advance(
        self, here: RestrictedProblem, state: F2SAState, batches: Batches
    ) -> tuple[F2SAState, OuterInfo]:
        s = jnp.minimum(self.multiplier * (state.step + 1.0) ** self.growth, self.most)

        def descend(carry: tuple, fit: Array) -> tuple[tuple, Scalar]:
            y, z = carry
            by_w = jax.grad(on_fit(here, batches, fit).inner_loss)
            by_y, by_z, pull = by_w(y), by_w(z), jax.grad(here.outer_loss)(y)
            y = vector.axpy(-self.step_size, vector.axpy(1 / s, pull, by_y), y)
            return (y, vector.axpy(-self.step_size, by_z, z)), vector.norm(by_z)

        start = (eqx.filter(state.penalised, eqx.is_inexact_array), here.w)
        (y, z), residuals = jax.lax.scan(descend, start, jnp.arange(self.inner_steps))

        direct = jax.grad(here.outer_loss, argnums=1)(y, here.h)
        by_h = jax.grad(here.inner_loss, argnums=1)
        hypergradient = vector.axpy(s, vector.sub(by_h(y, here.h), by_h(z, here.h)), direct)
        value = here.outer_loss(z)

        return self._moved(
            state,
            hypergradient,
            value,
            fitted=True,
            changes={"params": here.params_at(z), "penalised": here.params_at(y)},
            calls=3 * self.inner_steps + 3,
            inner_residual=residuals[-1],
            inner_iterations=2 * self.inner_steps,
        )
