"""The cross-validation criterion as a differentiable function of the hyperparameters."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import _get_feature_names

from strategies.sklearn.criteria import CRITERIA, Criterion, criterion_for
from strategies.sklearn.folds import Stacked, Table, transformed
from strategies.sklearn.models import (
    Fold,
    Model,
    NotDifferentiableError,
    Task,
    known_model,
    model_of,
)
from strategies.sklearn.models.base import Hyperparameters, Measure
from strategies.sklearn.programs import program_of

# Structures whose data and programs are kept: different preprocessing, other kernels.
_KEPT = 8
# Entries of a fold's features that are made dense at most, 400 MB.
_DENSE = 50_000_000


@dataclass(frozen=True)
class Evaluation:
    """A configuration's criterion and its derivative.

    - `value`: mean over folds; minimised.
    - `gradient`: by the name of the parameter, in natural values.
    - `folds`: the criterion of every fold.
    - `residual`: of the inner problem, the largest of all folds, relative to that at the start.
    - `seconds`: wall time.
    """

    value: float
    gradient: dict[str, np.ndarray]
    folds: np.ndarray
    residual: float
    seconds: float


class CrossValidation:
    """The mean over folds of a smooth criterion at the trained parameters.

    All folds are trained by one compiled program, in float64, whatever JAX's default is; where a
    training takes steps, it begins where the one before ended.

    **Arguments:**

    - `estimator`: an estimator, or a pipeline that ends in one.
    - `table`: the data.
    - `criterion`: a name, a function of outputs, targets and weights, or `"auto"`.
    - `scorer`: for which `"auto"` finds one.
    - `searched`: names of the parameters that are searched.
    - `groups`: columns of the groups that have a penalty each; `None` for one of all.
    - `width`: number of features that reach the estimator.
    - `rows`: number of samples for which programs are compiled, if more than there are.
    """

    def __init__(
        self,
        estimator: Any,
        table: Table,
        *,
        criterion: str | Criterion,
        scorer: Any,
        searched: frozenset[str],
        groups: list[np.ndarray] | None,
        width: int,
        rows: int | None = None,
    ):
        self.estimator, self.table, self.searched = estimator, table, searched
        self.groups, self.width, self.rows = groups, width, rows
        self.index = None if groups is None else _index(groups, width)
        self.model = self._model({})
        if self.model.dense_only and sparse.issparse(table.X):
            raise NotDifferentiableError("sparse features with a kernel")
        if self.model.survival != table.survival:
            raise ValueError(
                "y: expected events and times (a structured array) for a survival model, and for "
                f"no other, received dtype {table.raw_y.dtype} for {self.model.estimator!r}"
            )
        self._require_range()
        self.criterion = self._criterion(criterion, scorer)
        self._programs: OrderedDict[str, tuple[Stacked, Callable]] = OrderedDict()

    def _require_range(self) -> None:
        (least, itself), lowest = self.model.least, self.table.y.min()
        if lowest < least or (lowest == least and not itself):
            raise ValueError(
                f"y: expected targets {'>=' if itself else '>'} {least:g} for "
                f"{self.model.estimator!r}, received {lowest:g}"
            )

    @staticmethod
    def require_model(estimator: Any) -> None:
        """Raise `NotDifferentiableError` if no model is known of the final estimator."""
        known_model(final_step(estimator))

    @property
    def prefix(self) -> str:
        """Of the final estimator's parameters."""
        return prefix_of(self.estimator)

    @property
    def differentiable(self) -> list[str]:
        """Names of the parameters that have a hypergradient."""
        return [self.prefix + name for name in self.model.hyperparameters]

    @property
    def penalised(self) -> str | None:
        """Name of the parameter of which there may be one per feature."""
        name = self.model.per_feature
        return None if name is None else self.prefix + name

    def _model(self, structure: Mapping[str, Any]) -> Model:
        estimator = clone(self.estimator).set_params(**structure)
        return model_of(final_step(estimator), self._task())

    def _task(self) -> Task:
        classes = 0 if self.table.classes is None else len(self.table.classes)
        inside = [n for n in self.searched if n.startswith(self.prefix)]
        return Task(classes, frozenset(n[len(self.prefix) :] for n in inside))

    def _criterion(self, criterion: str | Criterion, scorer: Any) -> str | Criterion:
        if not isinstance(criterion, str):
            return criterion
        deviance = self.model.deviance is not None
        own = list(self.model.criteria)
        if criterion == "auto" and self.model.stand_in is not None:
            return self.model.stand_in
        if criterion == "auto":
            return criterion_for(
                scorer, self.model.estimator, margins=self.model.margins, deviance=deviance
            )
        common = [] if self.model.stand_in is not None else list(CRITERIA)
        names = ["auto", *common, *(["deviance", "d2"] if deviance else []), *own]
        if criterion in names:
            return criterion
        raise ValueError(
            f"'criterion': expected one of {names}, a function or None, received {criterion!r}"
        )

    def _measure(self, model: Model) -> Measure:
        """What a trained model is judged by on a fold."""
        if isinstance(self.criterion, str) and self.criterion in self.model.criteria:
            if self.criterion not in model.criteria:
                raise NotDifferentiableError(f"criterion={self.criterion!r} with {model.estimator}")
            return model.criteria[self.criterion]
        judge = self._judge(model)

        def measure(params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
            return judge(model.output(params, h, fold), fold.y, fold.test)

        return measure

    def _judge(self, model: Model) -> Criterion:
        if not isinstance(self.criterion, str):
            return self.criterion
        if self.criterion in CRITERIA:
            return CRITERIA[self.criterion]
        deviance = model.deviance
        assert deviance is not None

        def mean_deviance(output: Array, y: Array, weights: Array) -> Scalar:
            return jnp.sum(weights[:, None] * deviance(output, y)) / jnp.sum(weights)

        if self.criterion == "deviance":
            return mean_deviance

        def relative(output: Array, y: Array, weights: Array) -> Scalar:
            # No logarithm is taken of counts that are all zero.
            mean = jnp.maximum(weights @ y / jnp.sum(weights), jnp.finfo(y.dtype).tiny)
            spread = mean_deviance(jnp.broadcast_to(mean, y.shape), y, weights)
            # A constant target has no D²: the deviance itself then.
            return mean_deviance(output, y, weights) / jnp.where(spread > 0, spread, 1.0)

        return relative

    def _program(
        self, structure: Mapping[str, Any], names: Iterable[str] | None = None
    ) -> tuple[Stacked, Callable]:
        """That of a structure, of hyperparameters by name; default: of all that are searched."""
        task = self._task()
        names = task.searched if names is None else names
        key = repr((sorted(structure.items()), sorted(names)))
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        model = self._model(structure)
        head = head_of(clone(self.estimator).set_params(**structure))
        features = transformed(head, self.table)
        if model.dense_only:
            features = [_dense(x) for x in features]
        width = self.width if self.groups else max(x.shape[1] for x in features)
        padded = self.groups is None and not model.fixed_width
        stacked = Stacked(self.table, features, model, width, padded, self.rows)
        program = program_of(
            model,
            task,
            frozenset(names) & frozenset(model.hyperparameters),
            self.criterion,
            self._measure(model),
            stacked.axes,
            stacked.entries,
        )
        self._programs[key] = stacked, program
        if len(self._programs) > _KEPT:
            self._programs.popitem(last=False)
        return self._programs[key]

    def __call__(self, params: Mapping[str, Any]) -> Evaluation:
        """The criterion at parameters named as `set_params` names them, and its derivative.

        A value per group stands for the parameter that may be one per feature; its derivative is
        one per group, even where there is one value for all.

        **Raises:** `NotDifferentiableError` where there is no derivative at these parameters.
        """
        began = time.perf_counter()
        # A word among the values, as gamma="scale", is part of the model.
        smooth = [n for n in params if n in self.differentiable and not isinstance(params[n], str)]
        names = {n: n[len(self.prefix) :] for n in smooth}
        structure = {name: value for name, value in params.items() if name not in names}
        with jax.enable_x64(True):
            stacked, program = self._program(structure, names.values())
            model_names = set(stacked.model.hyperparameters)
            values = {
                inner: np.asarray(params[name], float)
                for name, inner in names.items()
                if inner in model_names
            }
            index, each, bare = None, {}, _bare(stacked.model)
            if self.groups is not None and bare in values:
                # One number for all groups has a derivative in each, and needs no other program.
                values[bare] = np.broadcast_to(values[bare], (len(self.groups),))
                index, each = jnp.asarray(self.index), {bare: values[bare][self.index]}
            folds = stacked.folds({**values, **each})
            response = program(jax.tree.map(jnp.asarray, values), folds, index)
            scores = np.asarray(response.value)
            stacked.start_from(response.params)
        back = {inner: name for name, inner in names.items()}
        return Evaluation(
            value=float(scores.mean()),
            gradient={back[n]: np.asarray(part) for n, part in response.gradient.items()},
            folds=scores,
            residual=float(response.residual),
            seconds=time.perf_counter() - began,
        )

    def split(self, value: Any) -> tuple[float, np.ndarray]:
        """The estimator's own parameter and the columns' factors, from one value per group."""
        return self.model.split(np.asarray(value, float)[self.index])


def _dense(x: Any) -> np.ndarray:
    """Features that a pipeline's first steps have made sparse, such as those of categories."""
    if not sparse.issparse(x):
        return x
    if x.shape[0] * x.shape[1] > _DENSE:
        raise NotDifferentiableError(
            f"sparse features of shape {x.shape}, which are too many to be made dense; search "
            "without gradients with criterion=None"
        )
    return x.toarray()


def _bare(model: Model) -> str:
    return model.per_feature or ""


def _index(groups: list[np.ndarray], width: int) -> np.ndarray:
    """The group of every column."""
    index = np.zeros(width, int)
    for number, members in enumerate(groups):
        index[members] = number
    return index


def final_step(estimator: Any) -> Any:
    """A pipeline's last step, or the estimator itself."""
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def head_of(estimator: Any) -> Pipeline | None:
    """A pipeline's steps before the last one; `None` if there are none."""
    several = isinstance(estimator, Pipeline) and len(estimator.steps) > 1
    return estimator[:-1] if several else None


def feature_names(estimator: Any, X: Any, y: Any) -> list[str]:
    """Names of the features that reach the final step."""
    head = head_of(estimator)
    if head is not None:
        fitted = clone(head).fit(X, y)
        try:
            return [str(name) for name in fitted.get_feature_names_out()]
        except (AttributeError, ValueError):
            return [f"x{column}" for column in range(fitted.transform(X[:1]).shape[1])]
    names = _get_feature_names(X)
    if names is None:
        return [f"x{column}" for column in range(np.shape(X)[1])]
    return [str(name) for name in names]


def prefix_of(estimator: Any) -> str:
    """Of the final step's parameters in the estimator's own."""
    return f"{estimator.steps[-1][0]}__" if isinstance(estimator, Pipeline) else ""
