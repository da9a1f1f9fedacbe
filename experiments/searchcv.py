"""HypergradSearchCV against scikit-learn's searches: one penalty, and one per feature.

Two parts:

- LassoBench's synthetic problem `synt_medium` (Šehić et al. 2022, "LassoBench: A high-dimensional
  hyperparameter optimization benchmark suite for Lasso"): the cross-validation loss over the
  oracle's, the held-out error and the F-score of the support, for LassoCV, the search, and
  L-BFGS-B on the same criterion and gradient from the middle of the box. The suite's published
  traces have 1.232 (Sparse-HO, 100 evaluations) and 0.958 (TuRBO, 1,000 evaluations); below 1 the
  folds are over-tuned, and what was held out decides;
- data that scikit-learn bundles: cross-validated and held-out scores, fits and wall time of
  GridSearchCV, RandomizedSearchCV, the estimators with a search of their own, and ours with one
  penalty and with one per feature. Held-out scores are means over several splits.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize as lbfgsb
from scipy.stats import loguniform
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import (
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)
from sklearn.metrics import check_scoring
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.sklearn import HypergradSearchCV
from strategies.sklearn.folds import Table
from strategies.sklearn.objective import CrossValidation
from strategies.space import Float, SearchSpace

BUDGETS = (5, 10, 15, 25, 50)


def correlated(
    samples: int, features: int, corr: float, w: np.ndarray, snr: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of celer 0.7's `make_correlated_data`, number for number.

    Columns are an autoregressive process; the noise has the targets' norm over `snr`.
    """
    rng = np.random.RandomState(seed)
    column = rng.randn(samples)
    x = np.empty((samples, features))
    x[:, 0] = column
    for j in range(1, features):
        column = corr * column + np.sqrt(1 - corr**2) * rng.randn(samples)
        x[:, j] = column
    clean = x @ w
    noise = rng.randn(samples)
    return x, clean + noise / np.linalg.norm(noise) * np.linalg.norm(clean) / snr


class Synthetic:
    """LassoBench's synt_medium: 100 penalties of a Lasso, five folds, 15 % held out."""

    def __init__(self) -> None:
        self.w = np.zeros(100)
        self.w[::20] = [1.0, -1.0, 1.0, -1.0, 1.0]
        x, y = correlated(50, 100, 0.6, self.w, 10, 42)
        parts = train_test_split(x, y, test_size=0.15, random_state=42)
        self.x, self.x_held, self.y, self.y_held = parts
        self.cv = KFold(5, shuffle=True, random_state=42)
        self.largest = float(np.abs(self.x.T @ self.y).max() / len(self.y))
        self.oracle = float(np.mean((self.y - self.x @ self.w) ** 2))
        self.oracle_held = float(np.mean((self.y_held - self.x_held @ self.w) ** 2))

    def row(self, name: str, loss: float, coef: np.ndarray) -> dict[str, Any]:
        """Loss and held-out error over the oracle's, and the F-score of the support."""
        on, true = coef != 0, self.w != 0
        return {
            "method": name,
            "loss / oracle": loss / self.oracle,
            "held-out error / oracle": float(np.mean((self.y_held - self.x_held @ coef) ** 2))
            / self.oracle_held,
            "F-score": 2 * float(np.sum(on & true)) / float(np.sum(on) + np.sum(true)),
        }

    def lasso_cv(self) -> dict[str, Any]:
        """The best penalty for all features."""
        splits = list(self.cv.split(self.x))
        found = LassoCV(cv=splits, fit_intercept=False).fit(self.x, self.y)
        return self.row("LassoCV", float(found.mse_path_.mean(axis=1).min()), found.coef_)

    def search(self, trials: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Ours: the best loss so far, and what was chosen."""
        found = HypergradSearchCV(
            Lasso(fit_intercept=False),
            SearchSpace({"alpha": Float(self.largest / 100, self.largest, log=True)}),
            penalty="per_feature",
            scoring="neg_mean_squared_error",
            cv=self.cv,
            n_trials=trials,
            patience=None,
            finalists=1,
            generalization=None,
        ).fit(self.x, self.y)
        values = np.array([trial.value for trial in found.trials_], float)
        row = self.row("HypergradSearchCV", -found.best_score_, found.coef_)
        return np.minimum.accumulate(values) / self.oracle, row

    def lbfgsb(self, trials: int) -> tuple[np.ndarray, dict[str, Any]]:
        """SciPy's L-BFGS-B on the same criterion and gradient, in the logarithm."""
        splits = list(self.cv.split(self.x))
        lasso = Lasso(fit_intercept=False)
        function = CrossValidation(
            lasso,
            Table(self.x, self.y, splits, None, None, False),
            criterion="squared_error",
            scorer=check_scoring(lasso),
            searched=frozenset(["alpha"]),
            groups=[np.array([j]) for j in range(100)],
            width=100,
        )
        values: list[float] = []

        def loss(unit: np.ndarray) -> tuple[float, np.ndarray]:
            alpha = self.largest * 100 ** (unit - 1)
            found = function({"alpha": alpha})
            values.append(found.value / self.oracle)
            slope = found.gradient["alpha"] * alpha * np.log(100) / self.oracle
            return values[-1], slope

        middle = np.full(100, 0.5)
        box = [(0.0, 1.0)] * 100
        found = lbfgsb(loss, middle, jac=True, bounds=box, options={"maxfun": trials})
        alpha = self.largest * 100 ** (found.x - 1)
        level, factors = function.split(alpha)
        coef = Lasso(alpha=level, fit_intercept=False).fit(self.x / factors, self.y).coef_ / factors
        return np.minimum.accumulate(values), self.row("L-BFGS-B", found.fun * self.oracle, coef)


def real(name: str) -> tuple[np.ndarray, np.ndarray, Any, str, np.ndarray, Callable[[], Any]]:
    """Features, targets, pipeline, parameter, its values and an estimator with an own search."""
    if name == "diabetes, squares":
        x, y = load_diabetes(return_X_y=True)
        x = PolynomialFeatures(include_bias=False).fit_transform(x)
        own = make_pipeline(StandardScaler(), LassoCV(max_iter=10_000))
        model = make_pipeline(StandardScaler(), Lasso(max_iter=10_000))
        return x, y, model, "lasso__alpha", np.geomspace(0.1, 30.0, 100), lambda: own
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        values = np.geomspace(0.1, 1000.0, 100)
        own = make_pipeline(StandardScaler(), RidgeCV(values))
        return x, y, make_pipeline(StandardScaler(), Ridge()), "ridge__alpha", values, lambda: own
    loaders = {"breast cancer": load_breast_cancer, "digits": load_digits}
    x, y = loaders[name](return_X_y=True)
    values = np.geomspace(1e-3, 1e2, 100)
    own = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=values[::5], l1_ratios=(0.0,), use_legacy_attributes=False, scoring="neg_log_loss"
        ),
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return x, y, model, "logisticregression__C", values, lambda: own


def compared(name: str, splits: int, trials: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All methods on several splits of a set: rows of means, and what the claims need."""
    x, y, model, parameter, values, own = real(name)
    kinds = y if y.dtype.kind == "i" else None
    scoring = "neg_log_loss" if kinds is not None else "neg_mean_squared_error"
    space = {parameter: loguniform(float(values[0]), float(values[-1]))}
    shared: dict[str, Any] = {"scoring": scoring}

    def searches(seed: int) -> dict[str, Any]:
        folds = StratifiedKFold if kinds is not None else KFold
        cv = folds(5, shuffle=True, random_state=seed)
        options = {**shared, "cv": cv}
        ours = {**options, "generalization": None, "random_state": seed, "finalists": 1}
        return {
            "GridSearchCV, 100 points": GridSearchCV(model, {parameter: values}, **options),
            "GridSearchCV, 20 points": GridSearchCV(
                model, {parameter: np.geomspace(values[0], values[-1], 20)}, **options
            ),
            "RandomizedSearchCV, 20": RandomizedSearchCV(
                model, space, n_iter=20, random_state=seed, **options
            ),
            "the estimator's own": own(),
            "ours, one penalty": HypergradSearchCV(model, space, patience=3, **ours),
            "ours, one per feature": HypergradSearchCV(
                model, space, penalty="per_feature", n_trials=trials, **ours
            ),
        }

    found: dict[str, list[tuple[float, float, float, float, float]]] = {}
    for seed in range(splits):
        parts = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=kinds)
        for method, search in searches(seed).items():
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                search.fit(parts[0], parts[2])
            seconds = time.perf_counter() - began
            held = check_scoring(model, scoring)(search, parts[1], parts[3])
            best = getattr(search, "best_score_", np.nan)
            error, fits = np.nan, np.nan
            if hasattr(search, "cv_results_"):
                error = search.cv_results_["std_test_score"][search.best_index_] / np.sqrt(5)
                trials_run = getattr(search, "trials_", [])
                fits = 5 * (len(search.cv_results_["params"]) + len(trials_run))
            found.setdefault(method, []).append((best, error, held, fits, seconds))
    rows = []
    for method, results in found.items():
        best, error, held, fits, seconds = np.mean(results, axis=0)
        rows.append(
            {
                "set": name,
                "method": method,
                "score by cross-validation": float(best),
                "held-out score": float(held),
                "fits": float(fits),
                "seconds": float(seconds),
            }
        )
    table = {method: np.array(results) for method, results in found.items()}
    grid, one, each = (
        table[method]
        for method in ("GridSearchCV, 100 points", "ours, one penalty", "ours, one per feature")
    )
    return rows, {
        "short": float(np.max((grid[:, 0] - one[:, 0]) / grid[:, 1])),
        "loss": float(np.mean(grid[:, 2] - each[:, 2]) / abs(np.mean(grid[:, 2]))),
    }


@experiment(
    paper="Šehić et al. 2022, LassoBench",
    options=[
        Option("trials", 50, quick=25, help="trials of the searches with a penalty per feature"),
        Option("splits", 3, quick=1, help="splits of each real set into training and held-out"),
        Option("sets", 4, quick=2, help="number of real sets"),
    ],
    claims=[
        Claim(
            "synthetic",
            "synt_medium: loss over the oracle's after all trials, below Sparse-HO's 1.232",
            at_most=1.232,
        ),
        Claim(
            "lbfgsb",
            "synt_medium: loss over L-BFGS-B's at the end of the budget",
            at_most=1.0,
        ),
        Claim(
            "one",
            "one penalty: standard errors below the best of a grid of 100, at worst",
            at_most=0.1,
        ),
        Claim(
            "harm",
            "real sets: what one penalty per feature loses on held-out data, relative, at worst",
            at_most=0.05,
            # One split into training and held-out samples tells little.
            quick=0.5,
        ),
    ],
)
def run(context: Context) -> None:
    """Measure, draw, and check the claims."""
    options = context.options
    synthetic = Synthetic()
    ours, row = synthetic.search(options.trials)
    theirs, other = synthetic.lbfgsb(options.trials)
    context.table("synt_medium", [synthetic.lasso_cv(), other, row])
    context.table(
        "synt_medium, by trials",
        [
            {
                "trials": budget,
                "HypergradSearchCV": float(ours[min(budget, len(ours)) - 1]),
                "L-BFGS-B": float(theirs[min(budget, len(theirs)) - 1]),
            }
            for budget in BUDGETS
            if budget <= options.trials
        ],
    )
    context.plot(
        "synt_medium",
        {
            "HypergradSearchCV": Curve(x=np.arange(len(ours)) + 1, y=ours),
            "L-BFGS-B": Curve(x=np.arange(len(theirs)) + 1, y=theirs),
        },
        x="trainings",
        y="best loss over the oracle's",
    )
    context.measure("synthetic", float(ours[-1]))
    context.measure("lbfgsb", float(ours[-1] / theirs[-1]))
    names = ("diabetes, squares", "breast cancer", "diabetes", "digits")[: options.sets]
    rows, shortfalls, losses = [], [], []
    for name in names:
        table, found = compared(name, options.splits, options.trials)
        rows += table
        shortfalls.append(found["short"])
        losses.append(found["loss"])
    context.table("real data", rows)
    context.measure("one", max(shortfalls))
    context.measure("harm", max(losses))


if __name__ == "__main__":
    raise SystemExit(run.main())
