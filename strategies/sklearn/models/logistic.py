"""Logistic regression, of two classes or more."""

from typing import Any

from sklearn.linear_model import LogisticRegression

from strategies.sklearn.models.base import NotDifferentiableError, Task
from strategies.sklearn.models.linear import LinearModel
from strategies.sklearn.models.losses import logistic, multinomial

#: Penalties as scikit-learn called them before 1.8.
_OLD = {"l2": 0.0, "l1": 1.0}


def logistic_regression(estimator: LogisticRegression, task: Task) -> LinearModel:
    """`LogisticRegression`: inverse penalty `C` on the sum of negative log likelihoods.

    Solver liblinear counts the intercept as a feature and penalises it.
    """
    penalty = estimator.penalty
    if penalty is None:
        raise NotDifferentiableError("penalty=None")
    share: Any = estimator.l1_ratio or 0.0
    if "l1_ratio" in task.searched:
        share = "l1_ratio"
    share = _OLD.get(penalty, share)
    intercept_penalty = 0.0
    if estimator.solver == "liblinear" and estimator.fit_intercept:
        if share:
            raise NotDifferentiableError("solver='liblinear' with an L1 penalty on the intercept")
        intercept_penalty = 1.0 / estimator.intercept_scaling**2
    binary = task.classes == 2
    return LinearModel(
        estimator,
        logistic if binary else multinomial,
        strength="C",
        inverse=True,
        l1_ratio=share,
        # Largest eigenvalue of diag(p) - p pᵀ.
        curvature=0.25 if binary else 0.5,
        intercept_penalty=intercept_penalty,
        softmax=not binary,
    )


MODELS: dict[type, Any] = {LogisticRegression: logistic_regression}
