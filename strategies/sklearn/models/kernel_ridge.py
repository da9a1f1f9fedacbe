"""Kernel ridge regression."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from sklearn.kernel_ridge import KernelRidge

from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Model,
    NotDifferentiableError,
    Task,
    geometric_mean,
)
from strategies.sklearn.models.kernels import KERNELS, kernel_matrix, kernel_split, per_feature


class KernelRidgeModel(Model):
    """`KernelRidge`: a linear system in the kernel matrix of the training samples."""

    dense_only: ClassVar[bool] = True

    def __init__(self, estimator: KernelRidge, task: Task):
        super().__init__(estimator)
        if estimator.kernel not in KERNELS:
            raise NotDifferentiableError(f"kernel={estimator.kernel!r}")
        self.hyperparameters = ("alpha", *KERNELS[estimator.kernel])
        self.per_feature = per_feature(estimator.kernel, "alpha")

    def _kernel(self, h: Hyperparameters, fold: Fold) -> Array:
        kernel = self.estimator.kernel
        if kernel == "linear":
            alpha = self.value(h, "alpha")
            gamma = geometric_mean(alpha) / alpha
        elif self.estimator.gamma is None and "gamma" not in h:
            gamma = jnp.asarray(1.0 / fold.x.shape[1])
        else:
            gamma = self.value(h, "gamma")
        coef0 = self.value(h, "coef0")
        return kernel_matrix(kernel, fold.x, gamma, coef0, self.estimator.degree)

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """See `Model.solve`: samples outside of the fold have zero rows beside the diagonal."""
        root = jnp.sqrt(fold.train)[:, None]
        system = root * self._kernel(h, fold) * root.T
        system += geometric_mean(self.value(h, "alpha")) * jnp.eye(len(root))
        return root * jax.scipy.linalg.solve(system, root * fold.y, assume_a="pos")

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`."""
        return self._kernel(h, fold) @ params

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Model.split`."""
        return kernel_split(value, inverse=self.per_feature == "gamma")


MODELS: dict[type, Any] = {KernelRidge: KernelRidgeModel}
