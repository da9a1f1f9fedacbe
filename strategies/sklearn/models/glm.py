"""Poisson, Gamma and Tweedie regression."""

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array
from sklearn.linear_model import GammaRegressor, PoissonRegressor, TweedieRegressor

from strategies.sklearn.models.base import Task
from strategies.sklearn.models.linear import LinearModel
from strategies.sklearn.models.losses import half_squared_error

#: The mean that training starts from, at least.
LEAST_MEAN = 1e-6


def half_deviance(mean: Array, y: Array, power: float) -> Array:
    """Half the unit deviance of a Tweedie distribution (Jørgensen 1987)."""
    if power == 0:
        return half_squared_error(mean, y)
    if power == 1:
        # At a count of zero the derivative of `xlogy(y, y / mean)` is not a number.
        return xlogy(y, y) - y * jnp.log(mean) - y + mean
    if power == 2:
        return jnp.log(mean / y) + y / mean - 1.0
    whole = jnp.maximum(y, 0.0) ** (2 - power) / ((1 - power) * (2 - power))
    return whole - y * mean ** (1 - power) / (1 - power) + mean ** (2 - power) / (2 - power)


def glm(estimator: PoissonRegressor | GammaRegressor | TweedieRegressor, task: Task) -> LinearModel:
    """Generalised linear regression: half the mean deviance, and `alpha / 2` on the squares."""
    # Poisson and Gamma are Tweedie distributions; their estimators have no parameter for it.
    power = {PoissonRegressor: 1.0, GammaRegressor: 2.0}.get(type(estimator))
    power = float(estimator.power) if power is None else power
    link = getattr(estimator, "link", "log")
    identity = link == "identity" or (link == "auto" and power <= 0)

    def mean(predictor: Array) -> Array:
        return predictor if identity else jnp.exp(predictor)

    def start(y: Array) -> Array:
        # Counts of a fold that are all zero have their minimum at minus infinity.
        return y if identity else jnp.log(jnp.maximum(y, LEAST_MEAN))

    model = LinearModel(
        estimator,
        lambda predictor, y: half_deviance(mean(predictor), y, power),
        strength="alpha",
        average=True,
        mean=mean,
        start=start,
    )
    if power > 0:
        model.least = (0.0, power < 2)
    model.deviance = lambda output, y: 2.0 * half_deviance(output, y, power)
    return model


MODELS: dict[type, Any] = {PoissonRegressor: glm, GammaRegressor: glm, TweedieRegressor: glm}
