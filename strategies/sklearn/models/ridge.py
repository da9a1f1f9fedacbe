"""Ridge regression."""

from typing import Any

from sklearn.linear_model import Ridge

from strategies.sklearn.models.base import NotDifferentiableError, Task
from strategies.sklearn.models.linear import LinearModel
from strategies.sklearn.models.losses import half_squared_error


def ridge(estimator: Ridge, task: Task) -> LinearModel:
    """`Ridge`: penalty `alpha` on the sum of squared errors."""
    if estimator.positive:
        raise NotDifferentiableError("positive=True")
    return LinearModel(estimator, half_squared_error, strength="alpha", quadratic=True)


MODELS: dict[type, Any] = {Ridge: ridge}
