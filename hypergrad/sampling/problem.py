"""Bilevel problems whose inner solution is a distribution."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_function_fields
from hypergrad.problem import BilevelProblem


class SamplingProblem(BilevelProblem):
    """Minimise an expectation under `π(x) ∝ exp(−potential(x, hparams))`.

    `params` is a cloud of particles: a pytree whose leaves have a leading axis of particles. The
    functions are of *one* particle; as a `BilevelProblem`, `inner` is the mean potential and
    `outer` the estimate of what is minimised.

    **Arguments:**

    - `potential`: `potential(x, hparams, batch) -> scalar`.
    - `loss`: `loss(x, hparams, batch) -> scalar`, of which the mean is minimised.
    - `statistic`: `statistic(x, batch) -> pytree`. If given, `loss` is a function of its mean:
      `loss(E[statistic(x)], hparams, batch)`.
    - `stochastic`: `potential` and `loss` take a fourth argument `key`.
    """

    potential: Callable = None  # type: ignore[assignment]
    loss: Callable = None  # type: ignore[assignment]
    statistic: Callable | None = None

    def __init__(
        self,
        potential: Callable,
        loss: Callable,
        statistic: Callable | None = None,
        *,
        stochastic: bool = False,
    ) -> None:
        self.potential = potential
        self.loss = loss
        self.statistic = statistic
        require_function_fields(self, "potential", "loss", optional=("statistic",))
        self.inner = _mean_potential(potential)
        self.outer = _mean_loss(loss) if statistic is None else _loss_of_mean(loss, statistic)
        self.optimality = None
        self.has_aux = False
        self.stochastic = stochastic

    def potentials(
        self, cloud: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> Array:
        """The potential of every particle."""
        extra = self._key(key)
        return jax.vmap(lambda x: self.potential(x, hparams, batch, *extra))(cloud)


def _mean_potential(potential: Callable) -> Callable:
    def inner(cloud: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Scalar:
        return jnp.mean(jax.vmap(lambda x: potential(x, hparams, batch, *key))(cloud))

    return inner


def _mean_loss(loss: Callable) -> Callable:
    def outer(cloud: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Scalar:
        return jnp.mean(jax.vmap(lambda x: loss(x, hparams, batch, *key))(cloud))

    return outer


def _loss_of_mean(loss: Callable, statistic: Callable) -> Callable:
    def outer(cloud: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Scalar:
        return loss(mean_statistic(statistic, cloud, batch), hparams, batch, *key)

    return outer


def mean_statistic(statistic: Callable, cloud: PyTree, batch: PyTree) -> PyTree:
    """The mean of a statistic over the cloud."""
    values = jax.vmap(lambda x: statistic(x, batch))(cloud)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values)
