"""Twelve objectives for Optuna as people write them: models of scikit-learn, parameters under `if`.

Each asks a trial for what it needs, in plain Python, and returns the mean over three folds of the
share of errors, of the log loss, or of the variance that is not explained. None was written for a
searcher of ours: no space is declared, and which parameters a trial has depends on others.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import AdaBoostClassifier, GradientBoostingRegressor, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from experiments.data.tabular import Name, tabular

#: From a trial and a seed, which shuffles the data and the folds, to a value to minimise.
Script = Callable[[optuna.Trial, int], float]

_FOLDS = 3


def _loss(scoring: str, model: Any, name: Name, seed: int, examples: int | None = None) -> float:
    """What is left to a perfect score."""
    # What is not kept for a test.
    parts = zip(*tabular(name, seed=seed)[:2], strict=True)
    x, y = (np.concatenate(part)[:examples] for part in parts)
    kind = KFold if name == "diabetes" else StratifiedKFold
    folds = kind(_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Small budgets of iterations are part of the scripts.
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(model, x, y, cv=folds, scoring=scoring)
    best = 0.0 if scoring == "neg_log_loss" else 1.0
    return float(best - np.mean(scores))


def kernels(trial: optuna.Trial, seed: int) -> float:
    """A support vector machine whose kernels have parameters of their own."""
    kernel = trial.suggest_categorical("kernel", ["rbf", "poly", "linear"])
    options: dict[str, Any] = {"C": trial.suggest_float("C", 1e-3, 1e3, log=True)}
    if kernel == "rbf":
        options["gamma"] = trial.suggest_float("gamma", 1e-5, 1e1, log=True)
    elif kernel == "poly":
        options["degree"] = trial.suggest_int("degree", 2, 5)
        options["coef0"] = trial.suggest_float("coef0", 0.0, 2.0)
    model = make_pipeline(StandardScaler(), SVC(kernel=kernel, **options))
    return _loss("accuracy", model, "wine", seed)


def machine(trial: optuna.Trial, seed: int) -> float:
    """The same on handwritten digits, with a width for every kernel."""
    kernel = trial.suggest_categorical("kernel", ["rbf", "poly", "sigmoid"])
    options: dict[str, Any] = {
        "C": trial.suggest_float("C", 1e-2, 1e3, log=True),
        "gamma": trial.suggest_float("gamma", 1e-6, 1.0, log=True),
    }
    if kernel == "poly":
        options["degree"] = trial.suggest_int("degree", 2, 5)
    model = make_pipeline(MinMaxScaler(), SVC(kernel=kernel, **options))
    return _loss("accuracy", model, "digits", seed, 500)


def models(trial: optuna.Trial, seed: int) -> float:
    """Which of four models, and its settings."""
    kind = trial.suggest_categorical("model", ["svc", "forest", "logistic", "neighbours"])
    model: Any
    if kind == "svc":
        model = SVC(
            C=trial.suggest_float("svc_C", 1e-4, 1e4, log=True),
            gamma=trial.suggest_float("svc_gamma", 1e-6, 10.0, log=True),
        )
    elif kind == "forest":
        model = RandomForestClassifier(
            trial.suggest_int("trees", 5, 60),
            max_depth=trial.suggest_int("depth", 1, 16, log=True),
            max_features=trial.suggest_float("features", 0.05, 1.0),
            random_state=0,
        )
    elif kind == "logistic":
        model = LogisticRegression(
            C=trial.suggest_float("logistic_C", 1e-4, 1e4, log=True), max_iter=300
        )
    else:
        model = KNeighborsClassifier(
            trial.suggest_int("k", 1, 40),
            weights=trial.suggest_categorical("weights", ["uniform", "distance"]),
            p=trial.suggest_int("p", 1, 2),
        )
    return _loss("accuracy", make_pipeline(StandardScaler(), model), "breast_cancer", seed, 300)


def network(trial: optuna.Trial, seed: int) -> float:
    """A network of one to three layers, each with a width."""
    layers = trial.suggest_int("layers", 1, 3)
    widths = [trial.suggest_int(f"width_{i}", 4, 64, log=True) for i in range(layers)]
    model = MLPClassifier(
        widths,
        alpha=trial.suggest_float("alpha", 1e-6, 1.0, log=True),
        learning_rate_init=trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        batch_size=trial.suggest_categorical("batch_size", [16, 32, 64]),
        activation=trial.suggest_categorical("activation", ["relu", "tanh", "logistic"]),
        max_iter=12,
        random_state=seed,
    )
    return _loss("neg_log_loss", make_pipeline(MinMaxScaler(), model), "digits", seed, 400)


def pipeline(trial: optuna.Trial, seed: int) -> float:
    """A reduction of the features, and one of three classifiers."""
    steps: list[Any] = [StandardScaler()]
    reduction = trial.suggest_categorical("reduction", ["pca", "best", "none"])
    if reduction == "pca":
        components = trial.suggest_int("components", 2, 50)
        whiten = trial.suggest_categorical("whiten", [True, False])
        steps.append(PCA(components, whiten=whiten))
    elif reduction == "best":
        steps.append(SelectKBest(k=trial.suggest_int("features", 5, 60)))
    kind = trial.suggest_categorical("classifier", ["svc", "neighbours", "discriminant"])
    if kind == "svc":
        cost = trial.suggest_float("C", 1e-2, 1e3, log=True)
        steps.append(SVC(C=cost, gamma=trial.suggest_float("gamma", 1e-5, 1.0, log=True)))
    elif kind == "neighbours":
        steps.append(KNeighborsClassifier(trial.suggest_int("k", 1, 20)))
    else:
        shrinkage = trial.suggest_float("shrinkage", 0.0, 1.0)
        steps.append(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage))
    return _loss("accuracy", make_pipeline(*steps), "digits", seed, 500)


def boosting(trial: optuna.Trial, seed: int) -> float:
    """Boosted trees."""
    model = GradientBoostingRegressor(
        n_estimators=trial.suggest_int("trees", 10, 120, log=True),
        learning_rate=trial.suggest_float("learning_rate", 1e-3, 1.0, log=True),
        max_depth=trial.suggest_int("depth", 1, 6),
        subsample=trial.suggest_float("subsample", 0.3, 1.0),
        min_samples_leaf=trial.suggest_int("leaf", 1, 50, log=True),
        max_features=trial.suggest_float("features", 0.1, 1.0),
        random_state=0,
    )
    return _loss("r2", model, "diabetes", seed)


def descent(trial: optuna.Trial, seed: int) -> float:
    """Stochastic gradient descent, whose schedules and penalties have parameters of their own."""
    penalty = trial.suggest_categorical("penalty", ["l2", "l1", "elasticnet"])
    schedule = trial.suggest_categorical("schedule", ["optimal", "constant", "invscaling"])
    options: dict[str, Any] = {"alpha": trial.suggest_float("alpha", 1e-7, 1.0, log=True)}
    if penalty == "elasticnet":
        options["l1_ratio"] = trial.suggest_float("l1_ratio", 0.0, 1.0)
    if schedule != "optimal":
        options["eta0"] = trial.suggest_float("eta0", 1e-4, 10.0, log=True)
    model = SGDClassifier(
        loss="log_loss",
        penalty=penalty,
        learning_rate=schedule,
        max_iter=20,
        random_state=0,
        **options,
    )
    return _loss("neg_log_loss", make_pipeline(StandardScaler(), model), "breast_cancer", seed)


def linear(trial: optuna.Trial, seed: int) -> float:
    """A penalised linear model of products of features."""
    degree = trial.suggest_int("degree", 1, 2)
    kind = trial.suggest_categorical("model", ["ridge", "lasso", "elastic"])
    alpha = trial.suggest_float("alpha", 1e-3, 1e3, log=True)
    model: Any
    if kind == "ridge":
        model = Ridge(alpha)
    elif kind == "lasso":
        model = Lasso(alpha, max_iter=500)
    else:
        ratio = trial.suggest_float("l1_ratio", 0.0, 1.0)
        model = ElasticNet(alpha, l1_ratio=ratio, max_iter=500)
    products = PolynomialFeatures(degree, include_bias=False)
    return _loss(
        "r2", make_pipeline(StandardScaler(), products, StandardScaler(), model), "diabetes", seed
    )


def tree(trial: optuna.Trial, seed: int) -> float:
    """One tree."""
    model = DecisionTreeClassifier(
        criterion=trial.suggest_categorical("criterion", ["gini", "entropy"]),
        max_depth=trial.suggest_int("depth", 1, 20),
        min_samples_split=trial.suggest_int("split", 2, 40),
        min_samples_leaf=trial.suggest_int("leaf", 1, 40),
        max_features=trial.suggest_categorical("features", ["sqrt", "log2", None]),
        ccp_alpha=trial.suggest_float("pruning", 1e-5, 0.3, log=True),
        random_state=0,
    )
    return _loss("neg_log_loss", model, "wine", seed)


def kernel_ridge(trial: optuna.Trial, seed: int) -> float:
    """Ridge regression with one of three kernels."""
    kernel = trial.suggest_categorical("kernel", ["rbf", "laplacian", "polynomial"])
    options: dict[str, Any] = {
        "alpha": trial.suggest_float("alpha", 1e-4, 1e3, log=True),
        "gamma": trial.suggest_float("gamma", 1e-5, 10.0, log=True),
    }
    if kernel == "polynomial":
        options["degree"] = trial.suggest_int("degree", 1, 4)
        options["coef0"] = trial.suggest_float("coef0", 0.0, 3.0)
    model = make_pipeline(StandardScaler(), KernelRidge(kernel=kernel, **options))
    return _loss("r2", model, "diabetes", seed)


def neighbours(trial: optuna.Trial, seed: int) -> float:
    """Nearest neighbours, with or without fewer dimensions."""
    steps: list[Any] = [StandardScaler()]
    if trial.suggest_categorical("reduce", [True, False]):
        steps.append(PCA(trial.suggest_int("components", 1, 10)))
    model = KNeighborsRegressor(
        trial.suggest_int("k", 1, 100),
        weights=trial.suggest_categorical("weights", ["uniform", "distance"]),
        p=trial.suggest_float("p", 1.0, 4.0),
    )
    return _loss("r2", make_pipeline(*steps, model), "diabetes", seed)


def adaptive(trial: optuna.Trial, seed: int) -> float:
    """Adaptive boosting of small trees."""
    base = DecisionTreeClassifier(
        max_depth=trial.suggest_int("depth", 1, 5),
        min_samples_leaf=trial.suggest_int("leaf", 1, 20),
    )
    model = AdaBoostClassifier(
        base,
        n_estimators=trial.suggest_int("trees", 3, 40),
        learning_rate=trial.suggest_float("learning_rate", 1e-3, 3.0, log=True),
        random_state=0,
    )
    return _loss("neg_log_loss", model, "wine", seed)


SCRIPTS: dict[str, Script] = {
    script.__name__: script
    for script in (
        kernels,
        machine,
        models,
        network,
        pipeline,
        boosting,
        descent,
        linear,
        tree,
        kernel_ridge,
        neighbours,
        adaptive,
    )
}
