"""Linear support vector classification with squared hinge loss."""

from typing import Any

from sklearn.svm import LinearSVC

from strategies.sklearn.models.base import NotDifferentiableError, Task
from strategies.sklearn.models.linear import LinearModel
from strategies.sklearn.models.losses import squared_hinge


def linear_svc(estimator: LinearSVC, task: Task) -> LinearModel:
    """`LinearSVC`: inverse penalty `C` on the sum of squared hinges, the intercept's included."""
    if estimator.loss != "squared_hinge" or estimator.penalty != "l2":
        raise NotDifferentiableError(f"loss={estimator.loss!r}, penalty={estimator.penalty!r}")
    if task.classes > 2 and (estimator.multi_class != "ovr" or estimator.class_weight is not None):
        raise NotDifferentiableError("more than two classes with weights, or not one against rest")
    model = LinearModel(
        estimator,
        squared_hinge,
        strength="C",
        inverse=True,
        intercept_penalty=1.0 / estimator.intercept_scaling**2 if estimator.fit_intercept else 0.0,
    )
    model.margins = True
    return model


MODELS: dict[type, Any] = {LinearSVC: linear_svc}
