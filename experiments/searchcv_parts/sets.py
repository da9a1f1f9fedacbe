"""Real data with a pipeline, its penalty's range, and the estimator that has a search of its own.

scikit-learn ships no California housing: it downloads it. GSE7390 (Desmedt et al. 2007) comes with
scikit-survival, and is here if that is installed.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import arff
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

# A metastasis within five years is the question of the signature of 76 genes.
_YEARS = 5.0
_DAYS = 365.25


@dataclass(frozen=True)
class Problem:
    """A set and what is fitted to it.

    - `parameter`, `low`, `high`: of the pipeline, and its range.
    - `own`: the estimator with an own search, from values of the parameter.
    - `groups`: of features that have something in common, known beforehand; without any, there is
      one penalty per feature.
    """

    x: np.ndarray
    y: np.ndarray
    model: Any
    parameter: str
    low: float
    high: float
    own: Callable[[np.ndarray], Any]
    groups: str | Mapping[str, list[int]] = "per_feature"

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.y.dtype.kind == "i"

    @property
    def scoring(self) -> str:
        """The score."""
        return "neg_log_loss" if self.classes else "neg_mean_squared_error"

    def grid(self, size: int) -> dict[str, np.ndarray]:
        """So many values of the penalty."""
        return {self.parameter: np.geomspace(self.low, self.high, size)}


def _logistic(x: np.ndarray, y: np.ndarray, groups: Any = "per_feature") -> Problem:
    def own(values: np.ndarray) -> Any:
        return LogisticRegressionCV(
            Cs=values,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
            scoring="neg_log_loss",
            max_iter=1000,
        )

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return Problem(x, y, model, "logisticregression__C", 1e-3, 1e2, own, groups)


def _degrees(degree: int) -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]]:
    """Diabetes with products of features, and a group for each degree."""
    x, y = load_diabetes(return_X_y=True)
    products = PolynomialFeatures(degree, include_bias=False).fit(x)
    degrees = products.powers_.sum(axis=1)
    groups = {f"degree {d}": np.flatnonzero(degrees == d).tolist() for d in range(1, degree + 1)}
    return products.transform(x), y, groups


def _lasso(degree: int) -> Problem:
    x, y, groups = _degrees(degree)
    model = make_pipeline(StandardScaler(), Lasso(max_iter=10_000))

    def own(values: np.ndarray) -> Any:
        return LassoCV(alphas=values, max_iter=10_000)

    return Problem(x, y, model, "lasso__alpha", 0.3, 30.0, own, groups)


def _ridge() -> Problem:
    x, y = load_diabetes(return_X_y=True)
    model = make_pipeline(StandardScaler(), Ridge())
    groups = {"person": [0, 1, 2, 3], "blood": [4, 5, 6, 7, 8, 9]}
    return Problem(x, y, model, "ridge__alpha", 0.1, 1000.0, lambda values: RidgeCV(values), groups)


def _elastic_net() -> Problem:
    x, y, groups = _degrees(2)
    model = make_pipeline(StandardScaler(), ElasticNet(l1_ratio=0.5, max_iter=10_000))

    def own(values: np.ndarray) -> Any:
        return ElasticNetCV(alphas=values, l1_ratio=0.5, max_iter=10_000)

    return Problem(x, y, model, "elasticnet__alpha", 0.03, 30.0, own, groups)


def _breast_cancer() -> Problem:
    x, y = load_breast_cancer(return_X_y=True)
    # Ten measures of cells' nuclei: their mean, standard error and worst value.
    kinds = ("mean", "error", "worst")
    return _logistic(x, y, {kind: list(range(10 * k, 10 * k + 10)) for k, kind in enumerate(kinds)})


def _digits() -> Problem:
    x, y = load_digits(return_X_y=True)
    # Pixels by their distance from the border of the image.
    row, column = np.divmod(np.arange(64), 8)
    ring = np.minimum(np.minimum(row, 7 - row), np.minimum(column, 7 - column))
    return _logistic(x, y, {f"ring {r}": np.flatnonzero(ring == r).tolist() for r in range(4)})


def _gse7390() -> Problem:
    spec = importlib.util.find_spec("sksurv")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "datasets/data/breast_cancer_GSE7390-metastasis.arff"
    data, about = arff.loadarff(path)
    names, kinds = about.names(), dict(zip(about.names(), about.types(), strict=True))
    time, event = data["t.tdm"].astype(float), data["e.tdm"].astype(float) == 1.0
    late = time > _YEARS * _DAYS
    known = late | event
    columns, genes, clinical = [], [], []
    for name in names:
        if name in ("t.tdm", "e.tdm"):
            continue
        members = genes if name.startswith("X") else clinical
        if kinds[name] == "numeric":
            members.append(len(columns))
            columns.append(data[name].astype(float))
            continue
        # All levels but the first, of those that occur.
        for level in np.unique(data[name])[1:]:
            members.append(len(columns))
            columns.append((data[name] == level).astype(float))
    x = np.stack(columns, axis=1)[known]
    groups = {"genes": genes, "clinical": clinical}
    return _logistic(x, (~late[known]).astype(int), groups)


SETS: dict[str, Callable[[], Problem]] = {
    "diabetes": _ridge,
    "breast cancer": _breast_cancer,
    "diabetes, squares": lambda: _lasso(2),
    "wine": lambda: _logistic(*load_wine(return_X_y=True)),
    "digits": _digits,
}
if importlib.util.find_spec("sksurv") is not None:
    SETS["GSE7390"] = _gse7390
SETS["diabetes, squares, elastic net"] = _elastic_net
SETS["diabetes, cubes"] = lambda: _lasso(3)


__all__ = ["SETS", "Problem"]
