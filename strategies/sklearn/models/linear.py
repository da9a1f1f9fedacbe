"""The linear models' common inner problem.

    Σ_i s_i ℓ(y_i, x_i·w + b) / N + Σ_j l1_j |w_j| + Σ_j l2_j w_j² / 2

with the weights `s` of a fold's training samples. Columns are centred and scaled within the
function, so that the solvers see a well-scaled problem, whatever the units, and a sparse matrix
stays sparse.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from hypergrad import CG, BilevelProblem, Dense, Newton, ProximalStep
from hypergrad.linear import vector
from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Measure,
    Model,
    Response,
    geometric_mean,
    implicit_response,
)
from strategies.sklearn.models.proximal_gradient import proximal_gradient, soft_threshold
from strategies.sklearn.models.small_newton import small_newton

# The largest system that is solved by factorisation rather than by conjugate gradients.
_DENSE = 128
_CLOSED = 2000
_TOLERANCE = 1e-9
_MOST_STEPS = 50_000
# `svds` finds the norm to this relative accuracy, from below.
_NORM_TOLERANCE = 1e-3


class LinearModel(Model):
    """Losses of a linear predictor with L1 and L2 penalties.

    **Arguments:**

    - `estimator`: with `fit_intercept`.
    - `loss`: of predictor and target, entry by entry.
    - `strength`: the parameter that is the penalty, or its inverse if `inverse`.
    - `average`: the penalty stands beside the mean loss (`N = Σ s`), or the sum (`N = 1`).
    - `l1_ratio`: the L1 share of the penalty: a fixed number, or the name of a parameter.
    - `curvature`: bound of the loss's second derivative, for L1 penalties.
    - `quadratic`: the loss is half the squared error.
    - `mean`: of the target, from the predictor.
    - `start`: the intercept to start from, from the mean target.
    - `intercept_penalty`: that of the intercept's square, relative to a feature's.
    - `softmax`: predictors are logits of classes, which a common shift does not change.
    """

    def __init__(
        self,
        estimator: Any,
        loss: Callable[[Array, Array], Array],
        *,
        strength: str,
        inverse: bool = False,
        average: bool = False,
        l1_ratio: float | str = 0.0,
        curvature: float | None = None,
        quadratic: bool = False,
        mean: Callable[[Array], Array] = lambda f: f,
        start: Callable[[Array], Array] = jnp.zeros_like,
        intercept_penalty: float = 0.0,
        softmax: bool = False,
    ):
        super().__init__(estimator)
        self.loss, self.strength, self.inverse, self.average = loss, strength, inverse, average
        self.l1_ratio, self.curvature, self.quadratic = l1_ratio, curvature, quadratic
        self.mean, self.start, self.intercept_penalty = mean, start, intercept_penalty
        self.softmax = softmax
        self.per_feature = strength
        names = (strength, l1_ratio) if isinstance(l1_ratio, str) else (strength,)
        self.hyperparameters = names

    @property
    def has_l1(self) -> bool:
        """Whether the inner problem has an L1 penalty."""
        return self.l1_ratio != 0.0

    # Penalties

    def penalties(self, h: Hyperparameters) -> tuple[Array, Array]:
        """L1 and L2 penalties, each one number or one per feature."""
        strength = self.value(h, self.strength)
        strength = 1.0 / strength if self.inverse else strength
        if not self.has_l1:
            return jnp.zeros(()), strength
        if isinstance(self.l1_ratio, str):
            share = self.value(h, self.l1_ratio)
        else:
            share = jnp.asarray(self.l1_ratio)
        reference = geometric_mean(strength)
        factor = strength / reference
        return reference * share * factor, reference * (1.0 - share) * factor**2

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Model.split`: an L1 penalty grows with the factor, an L2 penalty with its square."""
        reference = float(geometric_mean(value, np))
        relative = reference / value if self.inverse else value / reference
        return reference, relative if self.has_l1 else np.sqrt(relative)

    # The inner problem

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Centre and scale of the columns, and the largest curvature that they make."""
        share = train / train.sum()
        squares = x.multiply(x) if sparse.issparse(x) else x**2
        centre = np.asarray(share @ x).ravel()
        second = np.asarray(share @ squares).ravel()
        if not self.estimator.fit_intercept:
            centre = np.zeros_like(centre)
        variance = second - centre**2
        # A constant column leaves rounding errors.
        scale = np.where(variance > 1e-12 * second, np.sqrt(np.maximum(variance, 0.0)), 1.0)
        extra: dict[str, Any] = {"centre": centre, "scale": scale}
        if self.has_l1:
            extra["norm"] = _squared_norm(x, share, centre, scale)
        return extra

    def _predictor(self, params: PyTree, fold: Fold) -> Array:
        w = params["coef"] / fold.extra["scale"][:, None]
        return fold.x @ w + (params["intercept"] - fold.extra["centre"] @ w)

    def _smooth(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        total = jnp.sum(fold.train)
        loss = jnp.sum(fold.train[:, None] * self.loss(self._predictor(params, fold), fold.y))
        _, l2 = self.penalties(h)
        scaled = params["coef"] / fold.extra["scale"][:, None]
        penalty = 0.5 * jnp.sum(jnp.broadcast_to(l2, scaled.shape[:1])[:, None] * scaled**2)
        if self.intercept_penalty:
            intercept = params["intercept"] - fold.extra["centre"] @ scaled
            penalty += 0.5 * self.intercept_penalty * jnp.sum(intercept**2) * self._unit(h)
        if self.softmax:
            # Logits are unique up to a shift, which the penalty does not see in intercepts.
            penalty += 0.5 * total * jnp.sum(params["intercept"]) ** 2
        return loss / total + penalty / (1.0 if self.average else total)

    def _unit(self, h: Hyperparameters) -> Array:
        """The penalty of a feature whose factor is one."""
        strength = self.value(h, self.strength)
        return geometric_mean(1.0 / strength if self.inverse else strength)

    def _initial(self, fold: Fold) -> PyTree:
        mean = fold.train @ fold.y / jnp.sum(fold.train)
        return {
            "coef": jnp.zeros((fold.x.shape[1], fold.y.shape[1]), fold.y.dtype),
            "intercept": self.start(mean) if self.estimator.fit_intercept else jnp.zeros_like(mean),
        }

    def respond(self, h: Hyperparameters, fold: Fold, measure: Measure) -> Response:
        """See `Model.respond`."""
        n, p = fold.x.shape
        dense = isinstance(fold.x, jax.Array)
        if self.quadratic and not self.has_l1 and dense and min(n, p) <= _CLOSED:
            return super().respond(h, fold, measure)

        def outer(params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
            return measure(self._held(params), h, fold)

        start = self._initial(fold)
        if self.has_l1:
            return self._respond_sparse(outer, start, h, fold)
        problem = BilevelProblem(self._inner, outer)
        if (p + 1) * fold.y.shape[1] <= _DENSE:
            return implicit_response(problem, self._newton, Dense(), start, h, fold)
        slope = vector.norm(jax.grad(self._inner)(start, h, fold))
        linear = CG(tol=1e-8, max_steps=2000)
        newton = Newton(tol=_TOLERANCE * slope, linear_solver=linear)
        return implicit_response(problem, newton, linear, start, h, fold)

    def _newton(self, params: PyTree, h: Hyperparameters, fold: Fold) -> PyTree:
        return small_newton(
            lambda params: self._inner(params, h, fold), params, tol=_TOLERANCE, max_steps=100
        )

    def _inner(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        """The smooth part; an intercept that is not fitted is zero at its minimum."""
        held = 0.0 if self.estimator.fit_intercept else 0.5 * jnp.sum(params["intercept"] ** 2)
        return self._smooth(self._held(params), h, fold) + held

    def _held(self, params: PyTree) -> PyTree:
        """The parameters, with the intercept that is not fitted at zero."""
        if self.estimator.fit_intercept:
            return params
        return {**params, "intercept": jnp.zeros_like(params["intercept"])}

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """Least squares with L2 penalties: normal equations, of the smaller of both sizes."""
        root = jnp.sqrt(fold.train)
        scale = fold.extra["scale"]
        x = root[:, None] * (fold.x - fold.extra["centre"]) / scale
        mean = fold.train @ fold.y / jnp.sum(fold.train)
        intercept = mean if self.estimator.fit_intercept else jnp.zeros_like(mean)
        y = root[:, None] * (fold.y - intercept)
        _, l2 = self.penalties(h)
        l2 = jnp.broadcast_to(l2, scale.shape) / scale**2
        n, p = x.shape
        if p <= n:
            system = x.T @ x + jnp.diag(l2)
            coef = jax.scipy.linalg.solve(system, x.T @ y, assume_a="pos")
        else:
            system = (x / l2) @ x.T + jnp.eye(n)
            coef = x.T @ jax.scipy.linalg.solve(system, y, assume_a="pos") / l2[:, None]
        return {"coef": coef, "intercept": intercept}

    def _respond_sparse(
        self, outer: Callable, start: PyTree, h: Hyperparameters, fold: Fold
    ) -> Response:
        """With an L1 penalty; the derivative lives on the support."""
        scale = fold.extra["scale"]
        units = 1.0 if self.average else 1.0 / jnp.sum(fold.train)

        def thresholds(h: Hyperparameters) -> PyTree:
            l1 = jnp.broadcast_to(self.penalties(h)[0], scale.shape) / scale * units
            return {"coef": l1[:, None], "intercept": jnp.zeros_like(start["intercept"])}

        def prox(point: PyTree, h: Hyperparameters, step: Scalar) -> PyTree:
            return soft_threshold(point, vector.scale(step, thresholds(h)))

        assert self.curvature is not None
        _, l2 = self.penalties(h)
        largest = self.curvature * jnp.maximum(fold.extra["norm"], 1.0)
        step = 1.0 / (largest + jnp.max(l2 / scale**2) * units)
        problem = BilevelProblem(None, outer, ProximalStep(self._inner, prox, step, True))

        def solver(params: PyTree, h: Hyperparameters, fold: Fold) -> PyTree:
            return proximal_gradient(
                lambda params: self._inner(params, h, fold),
                thresholds(h),
                step,
                params,
                tol=_TOLERANCE,
                max_steps=_MOST_STEPS,
            )

        linear = CG(tol=1e-10, max_steps=2000)
        return implicit_response(problem, solver, linear, start, h, fold)

    def coefficients(self, params: PyTree, fold: Fold) -> tuple[Array, Array]:
        """Coefficients `(m, p)` and intercepts `(m,)` in the units of the columns."""
        w = params["coef"] / fold.extra["scale"][:, None]
        return w.T, params["intercept"] - fold.extra["centre"] @ w

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`."""
        return self.mean(self._predictor(params, fold))


def _squared_norm(x: Any, share: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> float:
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


__all__ = ["LinearModel"]
