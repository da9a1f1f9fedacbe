"""Support vector machines with kernels.

libsvm finds which samples are support vectors, and which of these are at the bound `C`. With that
known the solution is a linear system (the Karush-Kuhn-Tucker conditions: a free support vector lies
on its margin, coefficients sum to zero), whose derivative is that of the machine wherever the sets
do not change (Chapelle, Vapnik, Bousquet and Mukherjee, Machine Learning 46, 2002).

More than two classes are one machine for each pair of classes, one against one, as libsvm and hence
scikit-learn trains them.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Scalar
from sklearn.base import clone
from sklearn.svm import SVC, SVR

from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Measure,
    Model,
    NotDifferentiableError,
    Task,
    geometric_mean,
)
from strategies.sklearn.models.kernels import KERNELS, kernel_matrix, kernel_split, per_feature

# libsvm's tolerance on the conditions, so that the sets are right.
_TOLERANCE = 1e-6
# A coefficient so near to its bound, relative to it, is at the bound.
_AT_BOUND = 1e-6
#: Of several classes: what the pairs' machines are judged by.
PAIRWISE = "pairwise_squared_hinge"


class SupportVectorModel(Model):
    """`SVC` and `SVR`."""

    prepares_by_value: ClassVar[bool] = True
    dense_only: ClassVar[bool] = True

    def __init__(self, estimator: SVC | SVR, task: Task):
        super().__init__(estimator)
        if estimator.kernel not in KERNELS:
            raise NotDifferentiableError(f"kernel={estimator.kernel!r}")
        self.regression = isinstance(estimator, SVR)
        self.margins = not self.regression
        own = ("C", "epsilon") if self.regression else ("C",)
        self.hyperparameters = (*own, *KERNELS[estimator.kernel])
        self.per_feature = per_feature(estimator.kernel, "C")
        # In the order of `decision_function_shape="ovo"`.
        self.pairs = list(combinations(range(task.classes), 2)) if task.classes > 2 else []
        self.stand_in = PAIRWISE if self.pairs else None

    @property
    def criteria(self) -> Mapping[str, Measure]:
        """See `Model.criteria`."""
        return {PAIRWISE: self._pairwise} if self.pairs else {}

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Of every machine: its samples, their coefficients' signs, and which of them are free.

        `gamma` is in it as well where it is derived from the data, and the intercept.
        """
        rows = np.flatnonzero(train)
        level, scaled, own = self._scaled(x, rows, values)
        machine = clone(self.estimator).set_params(**own, gamma=level, tol=_TOLERANCE)
        if not self.regression:
            machine.set_params(class_weight=None)  # it is in the samples' weights
        labels = y.argmax(axis=1) if self.pairs else y[:, 0]
        if not self.regression and len(np.unique(labels[rows])) < len(np.unique(labels)):
            # libsvm leaves samples of weight zero out.
            raise ValueError(
                "'sample_weight': expected a weight above 0 for a sample of every class in every "
                "training part, received zeros for all of a class"
            )
        machine.fit(scaled[rows], labels[rows], sample_weight=train[rows])
        parts = self._parts(labels)
        width = max(len(part) for part in parts)
        # A machine with fewer samples than another repeats its first one, without a weight.
        at = np.stack([np.pad(part, (0, width - len(part)), mode="wrap") for part in parts])
        real = np.stack([np.arange(width) < len(part) for part in parts])
        dual = np.zeros((len(parts), len(y)))
        support = rows[machine.support_]
        stored = np.asarray(machine.dual_coef_)
        for number, (first, second) in enumerate(self.pairs or [(0, 0)]):
            if not self.pairs:
                dual[number, support] = stored[0]
                continue
            # libsvm keeps a class's coefficients against the others in rows, itself left out.
            for label, row in ((first, second - 1), (second, first)):
                mine = labels[support] == label
                dual[number, support[mine]] = stored[row, mine]
        coefficients = np.take_along_axis(dual, at, axis=1) * real
        bound = machine.C * train[at]
        return {
            "at": at,
            "goal": self._goals(y, at),
            "signs": np.sign(coefficients),
            "free": (np.abs(coefficients) < (1 - _AT_BOUND) * bound) & (coefficients != 0),
            "gamma": level,
            "intercept": np.asarray(machine.intercept_, float),
        }

    def _parts(self, labels: np.ndarray) -> list[np.ndarray]:
        """Positions of each machine's samples."""
        if not self.pairs:
            return [np.arange(len(labels))]
        return [np.flatnonzero((labels == a) | (labels == b)) for a, b in self.pairs]

    def _goals(self, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        """What each machine is to say of its samples."""
        if self.pairs:
            return np.stack([y[i, a] - y[i, b] for i, (a, b) in zip(at, self.pairs, strict=True)])
        return y[at, 0] if self.regression else 2.0 * y[at, 0] - 1.0

    def _scaled(
        self, x: np.ndarray, rows: np.ndarray, values: Mapping[str, Any]
    ) -> tuple[float, np.ndarray, dict[str, float]]:
        """One `gamma`, the columns that make up for it, and the other parameters."""
        gamma: Any = values.get("gamma", self.estimator.gamma)
        if isinstance(gamma, str):
            variance = x[rows].var() if gamma == "scale" else 1.0
            gamma = 1.0 / (x.shape[1] * variance) if variance > 0 else 1.0
        several = {name: np.asarray(value, float) for name, value in values.items()}
        several["gamma"] = np.asarray(gamma, float)
        name = self.per_feature or ""
        each = several.get(name, np.ones(()))
        factors: Any = 1.0
        if each.ndim:
            reference, factors = self.split(each)
            several[name] = np.asarray(reference)
        level = float(several.pop("gamma"))
        return level, x / factors, {key: float(value) for key, value in several.items()}

    def _kernel(self, h: Hyperparameters, fold: Fold) -> Array:
        kernel = self.estimator.kernel
        if kernel == "linear":
            strength = self.value(h, "C")
            gamma = strength / geometric_mean(strength)
        else:
            gamma = h["gamma"] if "gamma" in h else fold.extra["gamma"]
        return kernel_matrix(kernel, fold.x, gamma, self.value(h, "coef0"), self.estimator.degree)

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """See `Model.solve`: coefficients of all samples and an intercept for each machine."""
        kernel, extra = self._kernel(h, fold), fold.extra
        strength = geometric_mean(self.value(h, "C"))
        free, at = extra["free"].astype(kernel.dtype), extra["at"]
        bound = (1.0 - free) * extra["signs"] * strength * fold.train[at]
        goal = extra["goal"]
        if self.regression:
            goal = goal - extra["signs"] * self.value(h, "epsilon")

        def machine(at: Int[Array, " m"], *parts: Array) -> tuple[Array, Scalar]:
            inside, intercept = _conditions(kernel[at[:, None], at], *parts)
            return jnp.zeros(len(kernel)).at[at].add(inside), intercept

        duals, intercepts = jax.vmap(machine)(at, goal, free, bound, extra["intercept"])
        return {"dual": duals.T, "intercept": intercepts}

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`; of several classes as `decision_function_shape="ovo"` has them."""
        return self._kernel(h, fold) @ params["dual"] + params["intercept"]

    def _pairwise(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        """Mean squared hinge, of each sample over the machines in which its class takes part."""
        output = self.output(params, h, fold)
        first, second = np.array(self.pairs).T
        signs = fold.y[:, first] - fold.y[:, second]
        each = jnp.sum(jnp.abs(signs) * jax.nn.relu(1.0 - signs * output) ** 2, axis=1)
        return fold.test @ each / (jnp.sum(fold.test) * (fold.y.shape[1] - 1))

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Model.split`."""
        return kernel_split(value, inverse=True)


def _conditions(
    kernel: Float[Array, "m m"],
    goal: Float[Array, " m"],
    free: Float[Array, " m"],
    bound: Float[Array, " m"],
    intercept: Scalar,
) -> tuple[Float[Array, " m"], Scalar]:
    """Coefficients and intercept of a machine, from the Karush-Kuhn-Tucker conditions."""
    some = jnp.any(free > 0).astype(kernel.dtype)
    inside = free[:, None] * kernel * free + jnp.diag(1.0 - free)
    # Without a free support vector the intercept is whatever libsvm says.
    system = jnp.block([[inside, free[:, None]], [free[None], (1.0 - some)[None, None]]])
    last = jnp.where(some > 0, -jnp.sum(bound), intercept)
    rhs = jnp.append(free * (goal - kernel @ bound), last)
    solution = jax.scipy.linalg.solve(system, rhs)
    return bound + free * solution[:-1], solution[-1]


MODELS: dict[type, Any] = {SVC: SupportVectorModel, SVR: SupportVectorModel}
