"""Differentiable models of scikit-learn's estimators, one file for a family."""

from typing import Any

from strategies.sklearn.models import (
    gaussian_process,
    glm,
    kernel_ridge,
    lasso,
    linear_svm,
    logistic,
    network,
    ridge,
    svm,
)
from strategies.sklearn.models.base import Fold, Model, NotDifferentiableError, Task

#: Makers of models by the estimator's exact type: a subclass may train otherwise.
MODELS: dict[type, Any] = {
    **ridge.MODELS,
    **lasso.MODELS,
    **logistic.MODELS,
    **linear_svm.MODELS,
    **glm.MODELS,
    **kernel_ridge.MODELS,
    **svm.MODELS,
    **gaussian_process.MODELS,
    **network.MODELS,
}


def known_model(estimator: Any) -> Any:
    """The maker of an estimator's model.

    **Raises:** `NotDifferentiableError` if there is none.
    """
    kind = type(estimator)
    if kind.__module__.startswith("sksurv.") and kind not in MODELS:
        from strategies.sklearn.models import cox

        MODELS.update(cox.MODELS)
    if kind not in MODELS:
        known = ", ".join(sorted(kind.__name__ for kind in MODELS))
        raise NotDifferentiableError(f"{kind.__name__} is not among {known}")
    return MODELS[kind]


def model_of(estimator: Any, task: Task) -> Model:
    """The differentiable model of an estimator with its present parameters.

    **Raises:** `NotDifferentiableError`, which says why there is none.
    """
    return known_model(estimator)(estimator, task)


__all__ = ["MODELS", "Fold", "Model", "NotDifferentiableError", "Task", "known_model", "model_of"]
