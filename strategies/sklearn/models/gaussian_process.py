"""Gaussian process regression."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Measure,
    Model,
    NotDifferentiableError,
    Task,
    geometric_mean,
)
from strategies.sklearn.models.covariances import covariance, length_scale, parameters

_KERNEL = "kernel"


class GaussianProcessModel(Model):
    """`GaussianProcessRegressor` with `optimizer=None`: a linear system in the covariance matrix.

    Hyperparameters are `alpha`, the noise, and the kernel's, `kernel__length_scale` or
    `kernel__k1__constant_value` and so on.
    """

    dense_only: ClassVar[bool] = True
    densities = ("marginal_likelihood", "leave_one_out")

    def __init__(self, estimator: GaussianProcessRegressor, task: Task):
        super().__init__(estimator)
        given = estimator.kernel
        # What scikit-learn takes for `None`.
        self.kernel = ConstantKernel(1.0) * RBF(1.0) if given is None else given
        own = parameters(self.kernel, _KERNEL)
        if given is not None and estimator.optimizer is not None and given.n_dims:
            raise NotDifferentiableError(
                f"optimizer={estimator.optimizer!r} tunes the kernel in each fit; with "
                "optimizer=None the search does"
            )
        if np.ndim(estimator.alpha):
            raise NotDifferentiableError("an alpha for each sample")
        self.hyperparameters = ("alpha", *(own if given is not None else ()))
        self.per_feature = length_scale(self.kernel, _KERNEL) if given is not None else None
        self._own = {f"{_KERNEL}__{k}": v for k, v in self.kernel.get_params().items()}

    @property
    def criteria(self) -> Mapping[str, Measure]:
        """See `Model.criteria`: both are of the training part, whose targets they predict."""
        return {
            "marginal_likelihood": self._marginal_likelihood,
            "leave_one_out": self._leave_one_out,
        }

    def value(self, h: Hyperparameters, name: str) -> Array:
        """See `Model.value`."""
        if name in h or name not in self._own:
            return super().value(h, name)
        return jnp.asarray(self._own[name], float)

    def _covariance(self, h: Hyperparameters, fold: Fold, *, white: bool) -> Array:
        return covariance(
            self.kernel, _KERNEL, lambda name: self.value(h, name), fold.x, white=white
        )

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """See `Model.solve`: samples outside of the fold have zero rows beside the diagonal."""
        root = jnp.sqrt(fold.train)[:, None]
        level = jnp.zeros(fold.y.shape[1])
        spread = jnp.ones(fold.y.shape[1])
        if self.estimator.normalize_y:
            share = fold.train / jnp.sum(fold.train)
            level = share @ fold.y
            variance = share @ (fold.y - level) ** 2
            spread = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 1.0)
        smooth = self._covariance(h, fold, white=False)
        noise = jnp.diag(self._covariance(h, fold, white=True) - smooth) + self.value(h, "alpha")
        inside = (fold.train > 0).astype(smooth.dtype)
        system = root * smooth * root.T + jnp.diag(jnp.where(inside > 0, noise, 1.0))
        factor = jnp.linalg.cholesky(system)
        target = root * (fold.y - level) / spread
        solved = jax.scipy.linalg.cho_solve((factor, True), target)
        return {
            "dual": root * solved,
            "solved": solved,
            "target": target,
            "factor": factor,
            "level": level,
            "spread": spread,
        }

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`."""
        smooth = self._covariance(h, fold, white=False)
        return smooth @ params["dual"] * params["spread"] + params["level"]

    def _marginal_likelihood(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        """Negative log marginal likelihood, per training sample.

        Rasmussen and Williams 2006, equation 2.30.
        """
        count = jnp.sum(fold.train > 0)
        # Samples outside have a one on the diagonal, whose logarithm is zero.
        volume = jnp.sum(jnp.log(jnp.diag(params["factor"]))) / count
        fit = 0.5 * jnp.sum(params["target"] * params["solved"], axis=0) / count
        return jnp.sum(fit + volume + 0.5 * jnp.log(2.0 * jnp.pi))

    def _leave_one_out(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        """Negative log predictive density of each training sample given the others.

        Rasmussen and Williams 2006, equations 5.10 to 5.12.
        """
        inside = (fold.train > 0).astype(fold.train.dtype)
        identity = jnp.eye(len(inside))
        inverse = jax.scipy.linalg.cho_solve((params["factor"], True), identity)
        precision = jnp.diag(inverse)[:, None]
        each = 0.5 * (params["solved"] ** 2 / precision - jnp.log(precision / (2.0 * jnp.pi)))
        return jnp.sum(inside @ each) / jnp.sum(inside)

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Model.split`: a column divided by r has a length scale r times as long."""
        reference = float(geometric_mean(value, np))
        return reference, value / reference


MODELS: dict[type, Any] = {GaussianProcessRegressor: GaussianProcessModel}
