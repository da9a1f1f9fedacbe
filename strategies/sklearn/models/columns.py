"""A fold's columns, centred and scaled, and a column of ones for the intercept.

The matrix is never formed from sparse features: what is taken from a column's mean is a correction
of rank one to products with the features as they are.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, svds

from strategies.sklearn.models.base import Fold

# `svds` finds the norm to this relative accuracy, from below.
_NORM_TOLERANCE = 1e-3
# Features of which there are few.
_SMALL = 512


class Columns(eqx.Module):
    """The features of all samples as a linear map of parameters.

    - `x`: samples by features, dense or sparse.
    - `centre`, `scale`: what is taken from a column, and by what it is then divided.
    - `one`: one with an intercept, zero without: the last column.
    """

    x: Any
    centre: Float[Array, " p"]
    scale: Float[Array, " p"]
    one: Float[Array, ""]

    @classmethod
    def of(cls, fold: Fold, intercept: bool) -> "Columns":
        """Those of a fold."""
        one = jnp.asarray(float(intercept), fold.y.dtype)
        return cls(fold.x, fold.extra["centre"], fold.extra["scale"], one)

    @property
    def dense(self) -> bool:
        """Whether features are an array."""
        return isinstance(self.x, jax.Array)

    @property
    def entries(self) -> int:
        """Numbers that a product reads."""
        return int(self.x.size)

    @property
    def small(self) -> bool:
        """Whether systems in all parameters of an output are small enough to be factorised."""
        return self.dense and self.x.shape[1] <= _SMALL

    def times(self, w: Float[Array, "p1 m"]) -> Float[Array, "n m"]:
        """Predictors of all samples."""
        raw = w[:-1] / self.scale[:, None]
        return self.x @ raw + (self.one * w[-1] - self.centre @ raw)

    def adjoint(self, r: Float[Array, "n m"]) -> Float[Array, "p1 m"]:
        """The transposed map."""
        total = jnp.sum(r, axis=0)
        w = (self.x.T @ r - self.centre[:, None] * total) / self.scale[:, None]
        return jnp.concatenate([w, self.one * total[None]])

    def gram(self, d: Float[Array, " n"]) -> Float[Array, "p1 p1"]:
        """The columns' products with each other under weights of the samples; dense features."""
        whole = (self.x - self.centre) / self.scale
        whole = jnp.concatenate([whole, jnp.full((len(whole), 1), self.one)], axis=1)
        return whole.T @ (d[:, None] * whole)

    def squares(self, d: Float[Array, "n m"]) -> Float[Array, "p1 m"]:
        """The diagonal of `gram`, for each column of weights."""
        squared = self.x**2 if self.dense else self.x.squared()
        total, c = jnp.sum(d, axis=0), self.centre[:, None]
        w = squared.T @ d - 2.0 * c * (self.x.T @ d) + c**2 * total
        return jnp.concatenate([w / self.scale[:, None] ** 2, self.one * total[None]])


def squared_norm(x: Any, share: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> float:
    """A bound, tight to a part in a hundred, of the squared spectral norm of the scaled columns."""
    n, p = x.shape
    root = np.sqrt(share)

    def product(v: np.ndarray) -> np.ndarray:
        w = v.ravel() / scale
        return root * (x @ w - centre @ w)

    def adjoint(u: np.ndarray) -> np.ndarray:
        u = root * u.ravel()
        return (x.T @ u - centre * u.sum()) / scale

    if min(n, p) <= 2:
        dense = np.stack([product(column) for column in np.eye(p)], axis=1)
        return float(np.linalg.norm(dense, 2) ** 2)
    operator = LinearOperator((n, p), matvec=product, rmatvec=adjoint, dtype=float)
    values = svds(
        operator, k=1, tol=_NORM_TOLERANCE, v0=np.ones(min(n, p)), return_singular_vectors=False
    )
    return float(values[0] * (1 + 5 * _NORM_TOLERANCE)) ** 2
