"""Models against scikit-learn's own fits, hypergradients against full retraining."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_classification
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    ExpSineSquared,
    Matern,
    RationalQuadratic,
    WhiteKernel,
)
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
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import SVC, SVR, LinearSVC

from strategies.sklearn.folds import Table
from strategies.sklearn.models import NotDifferentiableError, Task, model_of
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
    "multinomial, elastic net": (
        LogisticRegression(tol=1e-10, solver="saga", max_iter=10**5),
        "3",
        {"C": 0.3, "l1_ratio": 0.6},
        "neg_log_loss",
    ),
    "poisson": (PoissonRegressor(solver="newton-cholesky", tol=1e-12), "n", {"alpha": 0.3}, "d2"),
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
    "Gaussian process": (
        GaussianProcessRegressor(
            ConstantKernel() * Matern(nu=1.5) + WhiteKernel(), optimizer=None, normalize_y=True
        ),
        "s",
        {
            "alpha": 0.1,
            "kernel__k1__k1__constant_value": 2.0,
            "kernel__k1__k2__length_scale": 3.0,
            "kernel__k2__noise_level": 0.4,
        },
        "r2",
    ),
    "Gaussian process, other kernels": (
        GaussianProcessRegressor(
            DotProduct() * RBF() + RationalQuadratic() ** 2 + ExpSineSquared() * Matern(nu=2.5),
            alpha=0.05,
            optimizer=None,
        ),
        "z",
        {
            "kernel__k1__k1__k1__sigma_0": 0.7,
            "kernel__k1__k1__k2__length_scale": 3.0,
            "kernel__k1__k2__kernel__length_scale": 2.0,
            "kernel__k1__k2__kernel__alpha": 0.6,
            "kernel__k2__k1__periodicity": 5.0,
            "kernel__k2__k1__length_scale": 1.5,
            "kernel__k2__k2__length_scale": 1.7,
        },
        "r2",
    ),
    "network, adam": (
        MLPRegressor(
            hidden_layer_sizes=(4,), activation="tanh", max_iter=30, random_state=0, batch_size=30
        ),
        "z",
        {"alpha": 0.5, "learning_rate_init": 0.01, "beta_1": 0.8, "beta_2": 0.99},
        "r2",
    ),
    "network, adam stops early": (
        MLPClassifier(hidden_layer_sizes=(4,), tol=1e-2, n_iter_no_change=3, random_state=0),
        "3",
        {"alpha": 0.5, "learning_rate_init": 0.05},
        "neg_log_loss",
    ),
    "network, rate that adapts": (
        MLPClassifier(
            (4,),
            "logistic",
            solver="sgd",
            learning_rate="adaptive",
            tol=1e-2,
            n_iter_no_change=2,
            max_iter=40,
            batch_size=30,
            random_state=0,
        ),
        "3",
        {"alpha": 0.5, "learning_rate_init": 0.3, "momentum": 0.8},
        "neg_log_loss",
    ),
    "network, rate that falls": (
        MLPClassifier(
            (4,),
            solver="sgd",
            learning_rate="invscaling",
            nesterovs_momentum=False,
            shuffle=False,
            max_iter=30,
            random_state=0,
        ),
        "2",
        {"alpha": 0.5, "learning_rate_init": 0.3, "power_t": 0.4},
        "neg_log_loss",
    ),
    "network, lbfgs": (
        MLPClassifier(
            (3,), "tanh", solver="lbfgs", tol=1e-9, max_iter=10**5, max_fun=10**6, random_state=0
        ),
        "2",
        {"alpha": 3.0},
        "neg_log_loss",
    ),
}
#: Step and tolerance where scikit-learn's own training is not exact: its L-BFGS stops at a relative
#: fall of the loss by 2e-9, whatever `tol` says. Proximal steps end at 1e-9 of the gradient.
INEXACT = {"network, lbfgs": (1e-2, 1e-2), "multinomial, elastic net": (1e-3, 1e-4)}
#: What another case compiles in the same way, or takes long to compile.
SLOW = {
    "Gaussian process, other kernels",
    "network, adam stops early",
    "network, rate that adapts",
    "network, rate that falls",
}
DATA = {
    "r": (X_REGRESSION, Y_REGRESSION),
    # Counts, zero among them.
    "n": (X_REGRESSION, Y_REGRESSION // 80.0),
    "s": (DIABETES[0][:103] * 20, Y_REGRESSION),
    "z": (DIABETES[0][:103] * 20, (Y_REGRESSION - 150.0) / 80.0),
    "2": TWO,
    "3": THREE,
}
#: Scores that are one minus the criterion.
RATIOS = {"r2", "d2"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_value_is_the_score_of_scikit_learns_fits_and_gradient_that_of_retraining(case):
    estimator, data, params, scoring = CASES[case]
    data = DATA[data]
    own = None if scoring == "d2" else scoring
    splits, function = objective(estimator, data, params, own)
    found = function(params)
    scores = cross_val_score(estimator.set_params(**params), *data, cv=splits, scoring=own)
    expected = 1.0 - scores if scoring in RATIOS else -scores
    np.testing.assert_allclose(found.folds, expected, rtol=1e-5)
    # Small enough that no feature enters or leaves: there a derivative has a jump.
    step, tolerance = INEXACT.get(case, (1e-4, 1e-4))
    for name, value in params.items():

        def along(shift, name=name, value=value):
            return function({**params, name: value + shift}).value

        difference = slope(along, step * value)
        assert found.gradient[name] == pytest.approx(difference, rel=tolerance)


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


def pairwise_hinge(machine, x, y):
    """Squared hinges of a sample, over the pairs' machines in which its class takes part."""
    output, one_hot = machine.decision_function(x), np.eye(3)[y]
    signs = np.stack([one_hot[:, a] - one_hot[:, b] for a, b in [(0, 1), (0, 2), (1, 2)]], axis=1)
    return np.mean(np.sum(np.abs(signs) * np.maximum(1.0 - signs * output, 0.0) ** 2, axis=1)) / 2


@pytest.mark.parametrize(
    ("kernel", "params"),
    [
        ("poly", {"C": 0.5, "gamma": np.array([0.3, 0.15]), "coef0": 0.5}),
        pytest.param("linear", {"C": np.array([0.1, 0.3])}, marks=pytest.mark.slow),
        pytest.param("rbf", {"C": 0.5, "gamma": np.array([0.3, 0.1])}, marks=pytest.mark.slow),
    ],
)
def test_svc_of_several_classes_is_one_machine_for_each_pair(kernel, params):
    x, y = THREE
    estimator = SVC(
        kernel=kernel, degree=2, class_weight="balanced", decision_function_shape="ovo", tol=1e-8
    )
    groups = [np.arange(3), np.arange(3, 6)]
    splits, function = objective(estimator, THREE, list(params), groups=groups)
    assert function.criterion == "pairwise_squared_hinge"
    name = "C" if kernel == "linear" else "gamma"
    level, factors = function.split(params[name])
    found = function(params)
    # The genuine machine, over columns that the factors divide.
    machine = clone(estimator).set_params(**{**params, name: level})
    losses = [
        pairwise_hinge(machine.fit(x[train] / factors, y[train]), x[test] / factors, y[test])
        for train, test in splits
    ]
    np.testing.assert_allclose(found.folds, losses, rtol=1e-5)
    for key, value in params.items():
        direction = np.array([0.2, -0.1]) if np.ndim(value) else 1.0

        def along(shift, key=key, value=value, direction=direction):
            return function({**params, key: value + shift * direction}).value

        expected = slope(along, 1e-5)
        assert np.sum(found.gradient[key] * direction) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_kernel_ridge_with_a_linear_kernel_is_ridge():
    x, y = DATA["z"]
    groups = [np.arange(2), np.arange(2, 10)]
    value = {"alpha": np.array([0.5, 7.0])}
    _, kernel = objective(KernelRidge(), (x, y), ["alpha"], groups=groups)
    _, ridge = objective(Ridge(fit_intercept=False), (x, y), ["alpha"], groups=groups)
    np.testing.assert_allclose(kernel(value).folds, ridge(value).folds, rtol=1e-8)
    np.testing.assert_allclose(kernel(value).gradient["alpha"], ridge(value).gradient["alpha"])
    assert kernel.split(value["alpha"])[1] == pytest.approx(ridge.split(value["alpha"])[1])


def test_marginal_likelihood_and_leave_one_out():
    x, y = DATA["z"][0][:24, :3], DATA["z"][1][:24]
    process = GaussianProcessRegressor(RBF() + WhiteKernel(), optimizer=None)
    params = {"kernel__k1__length_scale": np.array([1.5, 3.0, 1.0]), "kernel__k2__noise_level": 0.2}
    splits, likelihood = objective(process, (x, y), list(params), criterion="marginal_likelihood")
    _, one_out = objective(process, (x, y), list(params), criterion="leave_one_out")
    process = clone(process).set_params(**params)
    own, left = [], []
    for train, _ in splits:
        own.append(-process.fit(x[train], y[train]).log_marginal_likelihood() / len(train))
        densities = []
        for i in train:
            rest = np.setdiff1d(train, i)
            mean, std = process.fit(x[rest], y[rest]).predict(x[[i]], return_std=True)
            residual = (y[i] - mean[0]) / std[0]
            densities.append(0.5 * residual**2 + np.log(std[0]) + 0.5 * np.log(2.0 * np.pi))
        left.append(np.mean(densities))
    for function, expected in ((likelihood, own), (one_out, left)):
        found = function(params)
        np.testing.assert_allclose(found.folds, expected, rtol=1e-7)
        for name, value in params.items():
            direction = np.array([0.4, -0.3, 0.5]) if np.ndim(value) else 1.0

            def along(shift, function=function, name=name, value=value, direction=direction):
                return function({**params, name: value + shift * direction}).value

            expected = slope(along, 1e-4)
            assert np.sum(found.gradient[name] * direction) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (GaussianProcessRegressor(RBF()), "with optimizer=None"),
        (GaussianProcessRegressor(Matern(nu=0.7), optimizer=None), "nu other than"),
        (MLPRegressor(), "with an integer"),
        (MLPRegressor(random_state=0, early_stopping=True), "early_stopping"),
        (SVR(kernel="sigmoid"), "sigmoid"),
    ],
)
def test_what_has_no_gradient_says_why(estimator, message):
    with pytest.raises(NotDifferentiableError, match=message):
        model_of(estimator, Task(0, frozenset()))
