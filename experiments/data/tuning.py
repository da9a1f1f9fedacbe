"""Thirty small tuning tasks: models of scikit-learn, and penalties with closed-form gradients.

Each fits in milliseconds on a few hundred examples of a bundled set. Spaces are what a user would
write: 2 to 12 hyperparameters of mixed kinds, some of which exist only beside a certain choice.
The value is the validation loss: log loss where a model gives probabilities, else the share of
errors; the mean squared error over the variance for regressions.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from experiments.data.tabular import Name, tabular
from strategies import Categorical, Choice, Float, Int, Ordinal, Report, SearchSpace, report

Config = dict[str, Any]

# Training and validation examples: enough that hyperparameters matter, few enough for milliseconds.
_EXAMPLES = 200


class Tuning(NamedTuple):
    """What is searched, and the report of a configuration."""

    space: SearchSpace
    evaluate: Callable[[Config], Report]


def split(name: Name, seed: int) -> list[np.ndarray]:
    """Inputs and targets for training, then for validation."""
    data = tabular(name, seed=seed, fractions=(0.4, 0.2))
    return [array[:_EXAMPLES] for part in data[:2] for array in part]


def standardised(name: Name, seed: int) -> list[np.ndarray]:
    """The same with centred features of unit spread; a regression's targets likewise."""
    x, y, x_val, y_val = split(name, seed)
    scaler = StandardScaler().fit(x)
    if name == "diabetes":
        y, y_val = (y - y.mean()) / y.std(), (y_val - y.mean()) / y.std()
    return [scaler.transform(x), y, scaler.transform(x_val), y_val]


# -- models of scikit-learn ----------------------------------------------------------------------

SCALERS = {"standard": StandardScaler, "range": MinMaxScaler}
SCALING = Categorical(["none", *SCALERS])


def fitted(tree: dict[str, Any], model: Callable[[Config], Any]) -> Callable[[Name, int], Tuning]:
    """Tasks of a model; `"scaling"` is done before it."""

    def make(name: Name, seed: int) -> Tuning:
        x, y, x_val, y_val = split(name, seed)

        def evaluate(config: Config) -> Report:
            train, valid, scaling = x, x_val, config.get("scaling", "standard")
            if scaling != "none":
                scaler = SCALERS[scaling]().fit(x)
                train, valid = scaler.transform(x), scaler.transform(x_val)
            with warnings.catch_warnings():
                # Small budgets of iterations are part of the tasks.
                warnings.simplefilter("ignore", ConvergenceWarning)
                trained = model(config).fit(train, y)
            if name == "diabetes":
                error = np.mean((trained.predict(valid) - y_val) ** 2) / np.var(y_val)
                return report(float(error))
            if not hasattr(trained, "predict_proba"):
                return report(float(np.mean(trained.predict(valid) != y_val)))
            chances = np.nan_to_num(trained.predict_proba(valid)) + 1e-3
            chances /= chances.sum(axis=1, keepdims=True)
            return report(float(log_loss(y_val, chances, labels=trained.classes_)))

        return Tuning(SearchSpace(tree), evaluate)

    return make


def _plain(config: Config) -> Config:
    return {key: value for key, value in config.items() if key != "scaling"}


COST, WIDTH = Float(1e-3, 1e3, log=True), Float(1e-5, 10.0, log=True)
NEIGHBOURS = {
    "n_neighbors": Int(1, 50, log=True),
    "weights": Categorical(["uniform", "distance"]),
    "p": Float(1.0, 4.0),
}
TREE = {
    "max_depth": Int(1, 20),
    "min_samples_leaf": Int(1, 40, log=True),
    "min_samples_split": Int(2, 60, log=True),
    "max_features": Float(0.05, 1.0),
    "ccp_alpha": Float(1e-5, 0.1, log=True),
}
KERNEL = Choice(
    {
        "linear": {},
        "rbf": {"gamma": WIDTH},
        "poly": {"gamma": WIDTH, "degree": Int(2, 5), "coef0": Float(0.0, 3.0)},
    }
)


def kernel_machine(config: Config) -> SVC:
    """A support vector machine with the options of its kernel."""
    kernel = config["kernel"]
    options = kernel.get(kernel["kind"], {})
    # A poor scaling of the polynomial would let the solver run for ever.
    return SVC(C=config["C"], kernel=kernel["kind"], max_iter=3000, **options)


def network(config: Config) -> MLPClassifier:
    """Ten epochs of a network with up to two hidden layers."""
    shape = (config["width"],) * config["layers"]
    rest = {k: v for k, v in config.items() if k not in ("width", "layers", "scaling")}
    return MLPClassifier(shape, solver="adam", max_iter=10, random_state=0, **rest)


def pipeline(config: Config) -> Any:
    """One of three models."""
    kind = config["model"]["kind"]
    options = config["model"][kind]
    if kind == "svm":
        return kernel_machine(options)
    if kind == "tree":
        return DecisionTreeClassifier(random_state=0, **options)
    return KNeighborsClassifier(**options)


machines = fitted({"C": COST, "gamma": WIDTH}, lambda c: SVC(max_iter=3000, **c))
kernels = fitted({"C": COST, "kernel": KERNEL, "scaling": SCALING}, kernel_machine)
neighbours = fitted({**NEIGHBOURS, "scaling": SCALING}, lambda c: KNeighborsClassifier(**_plain(c)))
trees = fitted(
    {**TREE, "criterion": Categorical(["gini", "entropy"])},
    lambda c: DecisionTreeClassifier(random_state=0, **c),
)
regression_trees = fitted(TREE, lambda c: DecisionTreeRegressor(random_state=0, **c))
forests = fitted(
    {**TREE, "n_estimators": Ordinal([2, 4, 8, 16])},
    lambda c: ExtraTreesClassifier(random_state=0, **c),
)
regression_forests = fitted(
    {**TREE, "n_estimators": Ordinal([2, 4, 8, 16])},
    lambda c: ExtraTreesRegressor(random_state=0, **c),
)
descents = fitted(
    {
        "alpha": Float(1e-7, 1.0, log=True),
        "l1_ratio": Float(0.0, 1.0),
        "eta0": Float(1e-4, 10.0, log=True),
        "power_t": Float(0.1, 0.9),
        "learning_rate": Categorical(["constant", "invscaling", "adaptive"]),
        "loss": Categorical(["log_loss", "modified_huber"]),
        "average": Categorical([False, True]),
        "scaling": SCALING,
    },
    lambda c: SGDClassifier(penalty="elasticnet", max_iter=8, random_state=0, **_plain(c)),
)
networks = fitted(
    {
        "width": Int(2, 64, log=True),
        "layers": Int(1, 2),
        "activation": Categorical(["relu", "tanh", "logistic"]),
        "alpha": Float(1e-6, 10.0, log=True),
        "learning_rate_init": Float(1e-4, 1.0, log=True),
        "batch_size": Ordinal([8, 16, 32, 64]),
        "beta_1": Float(0.5, 0.99),
        "beta_2": Float(0.9, 0.9999),
        "scaling": SCALING,
    },
    network,
)
pipelines = fitted(
    {
        "model": Choice({"svm": {"C": COST, "kernel": KERNEL}, "tree": TREE, "knn": NEIGHBOURS}),
        "scaling": SCALING,
    },
    pipeline,
)
elastic = fitted(
    {"alpha": Float(1e-5, 10.0, log=True), "l1_ratio": Float(0.0, 1.0), "scaling": SCALING},
    lambda c: ElasticNet(**_plain(c)),
)
regressors = fitted(
    {"C": COST, "gamma": WIDTH, "epsilon": Float(1e-3, 10.0, log=True)},
    lambda c: SVR(max_iter=3000, **c),
)


# -- penalties and kernels with gradients --------------------------------------------------------


def ridge(groups: int, mixed: bool = False) -> Callable[[Name, int], Tuning]:
    """A penalty for each group of features and their products.

    Mixed, targets are cut off and features left out as well, of which there are no gradients.
    """

    def make(name: Name, seed: int) -> Tuning:
        x, y, x_val, y_val = standardised(name, seed)
        first, second = np.triu_indices(x.shape[1])
        x, x_val = (np.c_[a, a[:, first] * a[:, second]][:, :64] for a in (x, x_val))
        group = np.random.default_rng(0).permutation(x.shape[1]) % groups
        tree: dict[str, Any] = {"l2": Float(1e-4, 1e3, log=True, shape=(groups,))}
        if mixed:
            tree |= {"cut": Float(0.5, 5.0), "features": Ordinal([10, 20, 40, 64])}
            tree["root"] = Categorical([False, True])

        def evaluate(config: Config) -> Report:
            count, cut = config.get("features", 64), config.get("cut", np.inf)
            a, b = x[:, :count], x_val[:, :count]
            if config.get("root"):
                a, b = (np.sign(one) * np.sqrt(np.abs(one)) for one in (a, b))
            penalty = np.array(config["l2"])[group[:count]]
            matrix = a.T @ a / len(y) + np.diag(penalty)
            w = np.linalg.solve(matrix, a.T @ np.clip(y, -cut, cut) / len(y))
            residual = b @ w - y_val
            adjoint = np.linalg.solve(matrix, 2 * b.T @ residual / len(y_val))
            slope = np.bincount(group[:count], -adjoint * w, groups)
            return report(float(np.mean(residual**2)), {"l2": slope})

        return Tuning(SearchSpace(tree), evaluate)

    return make


def logistic(groups: int) -> Callable[[Name, int], Tuning]:
    """Two classes (odd and even, for digits), a penalty for each group of features."""

    def make(name: Name, seed: int) -> Tuning:
        x, y, x_val, y_val = standardised(name, seed)
        y, y_val = y % 2, y_val % 2
        group = np.random.default_rng(0).permutation(x.shape[1]) % groups
        space = SearchSpace({"l2": Float(1e-4, 10.0, log=True, shape=(groups,))})

        def evaluate(config: Config) -> Report:
            penalty, w = np.array(config["l2"])[group], np.zeros(x.shape[1])
            for _ in range(30):
                chance = expit(x @ w)
                slope = x.T @ (chance - y) / len(y) + penalty * w
                matrix = (x.T * (chance * (1 - chance))) @ x / len(y) + np.diag(penalty)
                step = np.linalg.solve(matrix, slope)
                w = w - step * min(1.0, 3.0 / np.max(np.abs(step), initial=1e-300))
                if np.max(np.abs(slope)) < 1e-10:
                    break
            scores = x_val @ w
            value = float(np.mean(np.logaddexp(0.0, scores) - y_val * scores))
            adjoint = np.linalg.solve(matrix, x_val.T @ (expit(scores) - y_val) / len(y_val))
            return report(value, {"l2": np.bincount(group, -adjoint * w, groups)})

        return Tuning(space, evaluate)

    return make


def kernel_ridge(name: Name, seed: int) -> Tuning:
    """Penalty and width of a Gaussian or exponential kernel."""
    x, y, x_val, y_val = standardised(name, seed)
    distances = {}
    for kind, root in (("gaussian", False), ("exponential", True)):
        for part, rows in (("train", x), ("valid", x_val)):
            squares = np.sum((rows[:, None] - x) ** 2, axis=2)
            distances[kind, part] = np.sqrt(squares) if root else squares
    space = SearchSpace(
        {
            "l2": Float(1e-6, 10.0, log=True),
            "gamma": Float(1e-4, 10.0, log=True),
            "kernel": Categorical(["gaussian", "exponential"]),
        }
    )

    def evaluate(config: Config) -> Report:
        train, valid = (distances[config["kernel"], part] for part in ("train", "valid"))
        near, far = (np.exp(-config["gamma"] * away) for away in (train, valid))
        matrix = near + config["l2"] * len(y) * np.eye(len(y))
        weights = np.linalg.solve(matrix, y)
        residual = far @ weights - y_val
        seed_of = 2 * residual / len(y_val)
        adjoint = np.linalg.solve(matrix, far.T @ seed_of)
        gamma = -seed_of @ (valid * far) @ weights + adjoint @ (train * near) @ weights
        gradient = {"l2": -len(y) * adjoint @ weights, "gamma": gamma}
        return report(float(np.mean(residual**2)), gradient)

    return Tuning(space, evaluate)


_SETS: list[tuple[str, Callable[[Name, int], Tuning], tuple[Name, ...]]] = [
    ("machine", machines, ("digits", "breast_cancer", "wine")),
    ("kernels", kernels, ("digits", "breast_cancer", "iris")),
    ("neighbours", neighbours, ("digits", "breast_cancer", "wine")),
    ("tree", trees, ("digits", "breast_cancer", "wine")),
    ("tree", regression_trees, ("diabetes",)),
    ("forest", forests, ("digits",)),
    ("forest", regression_forests, ("diabetes",)),
    ("descent", descents, ("digits", "breast_cancer")),
    ("network", networks, ("digits", "breast_cancer", "wine")),
    ("pipeline", pipelines, ("digits", "wine", "iris")),
    ("elastic", elastic, ("diabetes",)),
    ("regressor", regressors, ("diabetes",)),
    ("ridge-8", ridge(8), ("diabetes",)),
    ("ridge-mixed", ridge(8, mixed=True), ("diabetes",)),
    ("logistic-10", logistic(10), ("breast_cancer",)),
    ("logistic-12", logistic(12), ("digits",)),
    ("kernel-ridge", kernel_ridge, ("diabetes",)),
]

#: From a seed, which splits the data, to a task.
TASKS: dict[str, Callable[[int], Tuning]] = {
    f"{kind}:{name}": (lambda seed, make=make, name=name: make(name, seed))
    for kind, make, names in _SETS
    for name in names
}
