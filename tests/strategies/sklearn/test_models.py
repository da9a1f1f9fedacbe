"""Models against scikit-learn's own fits, hypergradients against full retraining."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_classification
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    ElasticNet,
    GammaRegressor,
    Lasso,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    TweedieRegressor,
)
from sklearn.metrics import check_scoring
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.svm import SVC, SVR, LinearSVC

from strategies.sklearn.folds import Table
from strategies.sklearn.objective import CrossValidation

DIABETES = load_diabetes(return_X_y=True)
# Units far apart, and folds of unequal size.
X_REGRESSION = DIABETES[0][:103] * np.geomspace(1, 100, 10) + 3.0
Y_REGRESSION = DIABETES[1][:103]
TWO = make_classification(103, 6, random_state=0)
THREE = make_classification(103, 6, n_informative=4, n_classes=3, random_state=0)


def slope(function, step):
    """Derivative at 0 by central differences of fourth order."""
    near, far = (function(step) - function(-step), function(2 * step) - function(-2 * step))
    return (8.0 * near - far) / (12.0 * step)


def objective(estimator, data, searched, scoring=None, groups=None, weight=None, criterion="auto"):
    x, y = data
    classifier = y.dtype.kind == "i"
    cv = (StratifiedKFold if classifier else KFold)(4, shuffle=True, random_state=0)
    splits = list(cv.split(x, y))
    table = Table(x, y, splits, weight, weight, classifier)
    scorer = check_scoring(estimator, scoring)
    return splits, CrossValidation(
        estimator,
        table,
        criterion=criterion,
        scorer=scorer,
        searched=frozenset(searched),
        groups=groups,
        width=x.shape[1],
    )


CASES = {
    "ridge": (Ridge(), "r", {"alpha": 3.0}, "r2"),
    "ridge, no intercept": (Ridge(fit_intercept=False), "r", {"alpha": 3.0}, "r2"),
    "lasso": (Lasso(tol=1e-12, max_iter=10**6), "r", {"alpha": 1.3}, "neg_mean_squared_error"),
    "elastic net": (
        ElasticNet(tol=1e-12, max_iter=10**6),
        "r",
        {"alpha": 0.3, "l1_ratio": 0.4},
        "neg_root_mean_squared_error",
    ),
    "logistic": (LogisticRegression(tol=1e-10, max_iter=10**5), "2", {"C": 0.3}, "neg_log_loss"),
    "logistic, liblinear": (
        LogisticRegression(tol=1e-12, solver="liblinear", class_weight="balanced"),
        "2",
        {"C": 0.3},
        "neg_log_loss",
    ),
    "logistic, L1": (
        LogisticRegression(tol=1e-10, solver="saga", max_iter=10**5),
        "2",
        {"C": 0.2, "l1_ratio": 0.7},
        "neg_log_loss",
    ),
    "multinomial": (LogisticRegression(tol=1e-10, max_iter=10**5), "3", {"C": 0.3}, "neg_log_loss"),
    "poisson": (PoissonRegressor(solver="newton-cholesky", tol=1e-12), "r", {"alpha": 0.3}, "d2"),
    "gamma": (
        GammaRegressor(solver="newton-cholesky", tol=1e-12),
        "r",
        {"alpha": 0.3},
        "neg_mean_gamma_deviance",
    ),
    "tweedie": (
        TweedieRegressor(power=1.5, solver="newton-cholesky", tol=1e-12),
        "r",
        {"alpha": 0.3},
        "neg_mean_absolute_error",
    ),
    "support vectors": (
        SVR(tol=1e-8, kernel="rbf"),
        "s",
        {"C": 30.0, "epsilon": 4.0, "gamma": 0.03},
        "r2",
    ),
    "kernel ridge": (KernelRidge(kernel="rbf"), "s", {"alpha": 0.3, "gamma": 0.02}, "r2"),
}
DATA = {
    "r": (X_REGRESSION, Y_REGRESSION),
    "s": (DIABETES[0][:103] * 20, Y_REGRESSION),
    "2": TWO,
    "3": THREE,
}
#: Scores that are one minus the criterion.
RATIOS = {"r2", "d2"}


@pytest.mark.parametrize("case", CASES)
def test_value_is_the_score_of_scikit_learns_fits_and_gradient_that_of_retraining(case):
    estimator, data, params, scoring = CASES[case]
    data = DATA[data]
    own = None if scoring == "d2" else scoring
    splits, function = objective(estimator, data, params, own)
    found = function(params)
    scores = cross_val_score(estimator.set_params(**params), *data, cv=splits, scoring=own)
    expected = 1.0 - scores if scoring in RATIOS else -scores
    np.testing.assert_allclose(found.folds, expected, rtol=1e-5)
    for name, value in params.items():

        def along(shift, name=name, value=value):
            return function({**params, name: value + shift}).value

        # Small enough that no feature enters or leaves: there a derivative has a jump.
        difference = slope(along, 1e-4 * value)
        assert found.gradient[name] == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("estimator", [Ridge(), Lasso(), ElasticNet(), LogisticRegression()])
def test_penalties_of_groups_are_those_of_scaled_columns(estimator):
    data = TWO if isinstance(estimator, LogisticRegression) else DATA["r"]
    x, y = data
    groups = [np.arange(2), np.arange(2, x.shape[1])]
    name = "C" if isinstance(estimator, LogisticRegression) else "alpha"
    _, function = objective(estimator, data, [name], groups=groups)
    value = np.array([0.2, 0.9])
    found = function({name: value})
    reference, factors = function.split(value)
    # Another search of one penalty, over the scaled columns.
    estimator.set_params(**{name: reference})
    _, scaled = objective(estimator, (x / factors, y), [name])
    assert found.value == pytest.approx(scaled({name: reference}).value, rel=1e-9)
    direction = np.array([0.3, -0.7])
    difference = slope(lambda s: function({name: value + s * direction}).value, 1e-3)
    assert found.gradient[name] @ direction == pytest.approx(difference, rel=1e-4)


def test_weights_are_repetitions():
    x, y = DATA["r"]
    weight = np.tile([1.0, 2.0, 0.0], 35)[:103]
    splits, function = objective(Ridge(), (x, y), ["alpha"], weight=weight)
    values = []
    for train, test in splits:
        model = Ridge(alpha=2.0).fit(x[train], y[train], sample_weight=weight[train])
        values.append(1.0 - model.score(x[test], y[test], sample_weight=weight[test]))
    np.testing.assert_allclose(function({"alpha": 2.0}).folds, values, rtol=1e-9)


def test_linear_svc_minimises_the_squared_hinge():
    estimator = LinearSVC(tol=1e-10, max_iter=10**6, dual=False)
    splits, function = objective(estimator, THREE, ["C"])
    x, y = THREE
    losses = []
    for train, test in splits:
        margins = estimator.set_params(C=0.05).fit(x[train], y[train]).decision_function(x[test])
        signs = 2.0 * np.eye(3)[y[test]] - 1.0
        losses.append(np.mean(np.sum(np.maximum(1.0 - signs * margins, 0.0) ** 2, axis=1)))
    found = function({"C": 0.05})
    np.testing.assert_allclose(found.folds, losses, rtol=1e-5)
    difference = slope(lambda s: function({"C": 0.05 + s}).value, 1e-4)
    assert found.gradient["C"] == pytest.approx(difference, rel=1e-3)


def test_svc_with_a_length_scale_per_feature():
    x, y = TWO
    splits, function = objective(
        SVC(class_weight="balanced"), TWO, ["C", "gamma"], groups=[np.arange(3), np.arange(3, 6)]
    )
    params = {"C": 0.7, "gamma": np.array([0.3, 0.05])}
    found = function(params)
    level, factors = function.split(params["gamma"])
    losses = []
    for train, test in splits:
        machine = SVC(C=0.7, gamma=level, class_weight="balanced", tol=1e-8)
        margins = machine.fit(x[train] / factors, y[train]).decision_function(x[test] / factors)
        losses.append(np.mean(np.maximum(1.0 - (2 * y[test] - 1) * margins, 0.0) ** 2))
    np.testing.assert_allclose(found.folds, losses, rtol=1e-5)
    direction = np.array([0.2, -0.03])
    difference = slope(
        lambda s: function({"C": 0.7, "gamma": params["gamma"] + s * direction}).value, 1e-4
    )
    assert found.gradient["gamma"] @ direction == pytest.approx(difference, rel=1e-4)
    difference = slope(lambda s: function({"C": 0.7 + s, "gamma": params["gamma"]}).value, 1e-4)
    assert found.gradient["C"] == pytest.approx(difference, rel=1e-4)
