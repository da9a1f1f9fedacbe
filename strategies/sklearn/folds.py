"""The data of all folds, stacked for one compiled program."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from strategies.sklearn.models import Fold, Model
from strategies.sklearn.models.sparse_matrix import SparseMatrix

Splits = Sequence[tuple[np.ndarray, np.ndarray]]


class Table:
    """Samples, targets and weights of a search, checked.

    **Arguments:**

    - `X`, `y`: as given to `fit`.
    - `splits`: pairs of training and test indices.
    - `train_weight`, `test_weight`: weights of all samples in training and in scoring.
    - `classifier`: whether targets are classes.

    **Raises:** `ValueError` for negative weights, a fold without a class, and whatever scikit-learn
    says of targets.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        splits: Splits,
        train_weight: Any,
        test_weight: Any,
        classifier: bool,
    ):
        self.X, self.raw_y, self.splits = X, y, splits
        size = X.shape[0] if hasattr(X, "shape") else len(X)
        self.train_weight = _weights(train_weight, size)
        self.test_weight = _weights(test_weight, size)
        self.classes: np.ndarray | None = None
        fields = getattr(getattr(y, "dtype", None), "names", None)
        self.survival = fields is not None
        if fields is not None:
            self.y = _survival(y, fields)
            return
        if not classifier:
            y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
            self.y = y.reshape(size, -1)
            return
        labels = check_array(y, ensure_2d=False, dtype=None, input_name="y").ravel()
        check_classification_targets(labels)
        self.classes, codes = np.unique(labels, return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError(f"y: expected at least 2 classes, received one class: {self.classes}")
        self.labels = labels
        several = len(self.classes) > 2
        self.y = np.eye(len(self.classes))[codes] if several else codes[:, None].astype(float)
        for number, (train, _) in enumerate(splits):
            missing = np.setdiff1d(np.arange(len(self.classes)), codes[train])
            if missing.size:
                raise ValueError(
                    "cv: expected every class in every training part, received none of class "
                    f"{self.classes[missing[0]].item()!r} in that of split {number}; use a "
                    "stratified splitter or fewer splits"
                )

    def weights(self, number: int, estimator: Any) -> tuple[np.ndarray, np.ndarray]:
        """Training and test weights of a split, class weights of the estimator included."""
        train, test = np.zeros(len(self.y)), np.zeros(len(self.y))
        chosen, held = self.splits[number]
        # A sample that a splitter repeats counts as often.
        np.add.at(train, chosen, self.train_weight[chosen])
        np.add.at(test, held, self.test_weight[held])
        class_weight = getattr(estimator, "class_weight", None)
        if class_weight is not None and self.classes is not None:
            each = compute_class_weight(
                class_weight,
                classes=self.classes,
                y=self.labels[chosen],
                sample_weight=self.train_weight[chosen],
            )
            train *= each[np.searchsorted(self.classes, self.labels)]
        return train, test


def _survival(y: np.ndarray, fields: Sequence[str]) -> np.ndarray:
    """Events as 0 and 1, and times, from a structured array of scikit-survival."""
    if len(fields) != 2 or y.dtype[0].kind != "b":
        raise ValueError(
            "y: expected numbers, classes or a structured array of events (bool) and times, "
            f"received dtype {y.dtype}"
        )
    return np.stack([y[fields[0]].astype(float), y[fields[1]].astype(float)], axis=1)


def _weights(weight: Any, size: int) -> np.ndarray:
    if weight is None:
        return np.ones(size)
    weight = np.asarray(weight, float)
    if weight.ndim == 0:
        return np.full(size, float(weight))
    if weight.shape != (size,) or not np.all(np.isfinite(weight)):
        raise ValueError(
            f"'sample_weight': expected {size} finite numbers, received shape {weight.shape} with "
            f"{np.sum(~np.isfinite(weight))} that are not finite"
        )
    if weight.min() < 0:
        raise ValueError(f"'sample_weight': expected weights >= 0, received {weight.min()}")
    return weight


def columns(X: Any) -> Any:
    """Features as a float array or a CSR matrix."""
    return check_array(X, accept_sparse="csr", dtype=np.float64)


def transformed(head: Pipeline | None, table: Table) -> list[Any]:
    """The features that reach the estimator: one array for all folds, or one for each."""
    if head is None:
        return [columns(table.X)]
    found = []
    for train, _ in table.splits:
        fitted = clone(head)
        fitted.fit(
            _safe_indexing(table.X, train),
            None if table.raw_y is None else _safe_indexing(table.raw_y, train),
        )
        found.append(columns(fitted.transform(table.X)))
    return found


class Stacked:
    """All folds of one structure, on the device, and what `vmap` has to know of their axes.

    Samples of weight zero fill up to `rows`, so that searches of parts of a table have the shapes,
    and the compiled program, of the whole.
    """

    def __init__(
        self,
        table: Table,
        features: list[Any],
        model: Model,
        width: int,
        padded: bool,
        rows: int | None = None,
    ) -> None:
        self.table, self.model = table, model
        self.more = max(0, (rows or 0) - len(table.y))
        wide = [_as_wide(x, width, padded, number) for number, x in enumerate(features)]
        self.features = [_filled(x, self.more) for x in wide]
        self.y = _filled(table.y, self.more)
        shared = len(self.features) == 1
        self.weights = [
            tuple(np.pad(part, (0, self.more)) for part in table.weights(number, model.estimator))
            for number in range(len(table.splits))
        ]
        self.x = _on_device(self.features)
        self.axes = Fold(x=None if shared else 0, y=None, train=0, test=0, extra=0)  # type: ignore[arg-type]
        self._known: Fold | None = None

    @property
    def entries(self) -> int:
        """Of the features, times outputs and folds."""
        first = self.features[0]
        stored = first.nnz if sparse.issparse(first) else first.size
        return int(stored) * self.y.shape[1] * len(self.weights)

    def folds(self, values: Mapping[str, Any]) -> Fold:
        """The folds for hyperparameters of these values."""
        if self._known is not None and not self.model.prepares_by_value:
            return self._known
        extras = [
            self.model.prepare(self.features[number % len(self.features)], self.y, train, values)
            for number, (train, _) in enumerate(self.weights)
        ]
        self._known = Fold(
            x=self.x,
            y=jnp.asarray(self.y),
            train=jnp.asarray(np.stack([train for train, _ in self.weights])),
            test=jnp.asarray(np.stack([test for _, test in self.weights])),
            extra=jax.tree.map(
                lambda *leaves: jnp.asarray(np.stack(leaves)), *self.model.together(extras)
            ),
        )
        return self._known

    def start_from(self, params: Any) -> None:
        """Where the next training starts, for each fold; nothing for a closed form."""
        if self._known is not None and not self.model.prepares_by_value and jax.tree.leaves(params):
            extra = {**self._known.extra, "start": params}
            self._known = replace(self._known, extra=extra)


def _filled(x: Any, more: int) -> Any:
    """With the first sample, whose values are legal ones, so many times more."""
    if not more:
        return x
    if sparse.issparse(x):
        return sparse.csr_array(sparse.vstack([x, *[x[:1]] * more]))
    return np.concatenate([x, np.repeat(x[:1], more, axis=0)])


def _as_wide(x: Any, width: int, padded: bool, number: int) -> Any:
    missing = width - x.shape[1]
    if missing == 0:
        return x
    if not padded or missing < 0:
        raise ValueError(
            f"X: expected {width} features in every fold, as penalties or weights are one per "
            f"feature, received {x.shape[1]} in fold {number} after the pipeline's first steps (a "
            "category that a fold lacks? give OneHotEncoder its categories)"
        )
    if sparse.issparse(x):
        return sparse.csr_array((x.data, x.indices, x.indptr), shape=(x.shape[0], width))
    return np.pad(x, [(0, 0), (0, missing)])


def _on_device(features: list[Any]) -> Any:
    if len(features) == 1 and not sparse.issparse(features[0]):
        return jnp.asarray(features[0])
    if not any(sparse.issparse(x) for x in features):
        return jnp.asarray(np.stack(features))
    return SparseMatrix.stacked(features)
