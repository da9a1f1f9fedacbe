"""Lasso and elastic net."""

from typing import Any

from sklearn.linear_model import ElasticNet, Lasso

from strategies.sklearn.models.base import NotDifferentiableError, Task
from strategies.sklearn.models.linear import LinearModel
from strategies.sklearn.models.losses import half_squared_error


def lasso(estimator: Lasso | ElasticNet, task: Task) -> LinearModel:
    """`Lasso` and `ElasticNet`: penalty `alpha` beside half the mean squared error."""
    if estimator.positive:
        raise NotDifferentiableError("positive=True")
    return LinearModel(
        estimator,
        half_squared_error,
        start=lambda y: y,
        strength="alpha",
        average=True,
        # A Lasso has an `l1_ratio` as well, which it does not let be chosen.
        l1_ratio="l1_ratio" if type(estimator) is ElasticNet else 1.0,
        curvature=1.0,
        quadratic=True,
    )


MODELS: dict[type, Any] = {Lasso: lasso, ElasticNet: lasso}
