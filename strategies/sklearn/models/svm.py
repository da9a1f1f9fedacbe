"""Support vector machines with kernels.

libsvm finds which samples are support vectors, and which of these are at the bound `C`. With that
known the solution is a linear system (the Karush-Kuhn-Tucker conditions: a free support vector lies
on its margin, coefficients sum to zero), whose derivative is that of the machine wherever the sets
do not change (Chapelle, Vapnik, Bousquet and Mukherjee, Machine Learning 46, 2002).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from sklearn.base import clone
from sklearn.svm import SVC, SVR

from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Model,
    NotDifferentiableError,
    Task,
    geometric_mean,
)
from strategies.sklearn.models.kernels import KERNELS, kernel_matrix

# libsvm's tolerance on the conditions, so that the sets are right.
_TOLERANCE = 1e-6
# A coefficient so near to its bound, relative to it, is at the bound.
_AT_BOUND = 1e-6


class SupportVectorModel(Model):
    """`SVC` with two classes, and `SVR`."""

    prepares_by_value: ClassVar[bool] = True
    dense_only: ClassVar[bool] = True

    def __init__(self, estimator: SVC | SVR, task: Task):
        super().__init__(estimator)
        if estimator.kernel not in KERNELS:
            raise NotDifferentiableError(f"kernel={estimator.kernel!r}")
        if task.classes > 2:
            raise NotDifferentiableError(f"SVC with {task.classes} classes, which trains pairs")
        self.regression = isinstance(estimator, SVR)
        self.margins = not self.regression
        own = ("C", "epsilon") if self.regression else ("C",)
        self.hyperparameters = (*own, *KERNELS[estimator.kernel])
        self.per_feature = "gamma" if estimator.kernel == "rbf" else None

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The support vectors' signs, which of them are free, and `gamma` where it is derived."""
        rows = np.flatnonzero(train)
        gamma = values.get("gamma", self.estimator.gamma)
        if isinstance(gamma, str):
            variance = x[rows].var() if gamma == "scale" else 1.0
            gamma = 1.0 / (x.shape[1] * variance) if variance > 0 else 1.0
        # One number per feature is one number over scaled columns.
        level = float(geometric_mean(np.atleast_1d(gamma), np))
        scaled = x * np.sqrt(np.asarray(gamma) / level)
        machine = clone(self.estimator).set_params(
            **{name: float(value) for name, value in values.items() if name != "gamma"},
            gamma=level,
            tol=_TOLERANCE,
        )
        if not self.regression:
            machine.set_params(class_weight=None)  # it is in the samples' weights
        machine.fit(scaled[rows], y[rows, 0], sample_weight=train[rows])
        signs = np.zeros(len(y))
        free = np.zeros(len(y))
        at = rows[machine.support_]
        coefficients = np.asarray(machine.dual_coef_)[0]
        signs[at] = np.sign(coefficients)
        free[at] = np.abs(coefficients) < (1 - _AT_BOUND) * machine.C * train[at]
        return {
            "signs": signs,
            "free": free,
            "gamma": level,
            "intercept": float(machine.intercept_[0]),
        }

    def _kernel(self, h: Hyperparameters, fold: Fold) -> Array:
        gamma = h["gamma"] if "gamma" in h else fold.extra["gamma"]
        coef0 = self.value(h, "coef0")
        return kernel_matrix(self.estimator.kernel, fold.x, gamma, coef0, self.estimator.degree)

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """See `Model.solve`."""
        signs, free = fold.extra["signs"], fold.extra["free"]
        kernel, y = self._kernel(h, fold), fold.y[:, 0]
        bound = (1.0 - free) * signs * self.value(h, "C") * fold.train
        # What a free support vector's output is.
        target = y - signs * self.value(h, "epsilon") if self.regression else 2.0 * y - 1.0
        some = jnp.any(free > 0).astype(y.dtype)
        inside = free[:, None] * kernel * free + jnp.diag(1.0 - free)
        # Without a free one the intercept is whatever libsvm says.
        system = jnp.block([[inside, free[:, None]], [free[None], (1.0 - some)[None, None]]])
        last = jnp.where(some > 0, -jnp.sum(bound), fold.extra["intercept"])
        rhs = jnp.append(free * (target - kernel @ bound), last)
        solution = jax.scipy.linalg.solve(system, rhs)
        return {"dual": bound + free * solution[:-1], "intercept": solution[-1]}

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`."""
        return (self._kernel(h, fold) @ params["dual"] + params["intercept"])[:, None]

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Model.split`: `gamma` is divided by the square of a factor."""
        reference = float(geometric_mean(value, np))
        return reference, np.sqrt(reference / value)


MODELS: dict[type, Any] = {SVC: SupportVectorModel, SVR: SupportVectorModel}
