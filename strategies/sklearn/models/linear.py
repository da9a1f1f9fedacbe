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

from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Measure,
    Model,
    Response,
    geometric_mean,
)
from strategies.sklearn.models.columns import Columns, squared_norm
from strategies.sklearn.models.newton import Hessians, Penalty, Trained, newton
from strategies.sklearn.models.proximal_gradient import proximal_gradient

# The largest linear system of least squares that is factorised.
_CLOSED = 2000
# The gradient at the end of training, relative to that without features, and the adjoint system's
# residual. The coarse ones are for more than so many entries of the features, times outputs: with
# an L1 penalty, and without one, where the criterion is corrected for the gradient that is left.
_TOLERANCE, _COARSE, _CORRECTED, _MANY = 1e-9, 1e-6, 1e-3, 200_000
_MOST_STEPS, _MOST_NEWTON_STEPS = 50_000, 100


class LinearModel(Model):
    """Losses of a linear predictor with L1 and L2 penalties.

    **Arguments:**

    - `estimator`: with `fit_intercept`.
    - `loss`: of predictor and target, entry by entry.
    - `strength`: the parameter that is the penalty, or its inverse if `inverse`.
    - `average`: the penalty stands beside the mean loss (`N = Σ s`), or the sum (`N = 1`).
    - `l1_ratio`: the L1 share of the penalty: a fixed number, or the name of a parameter.
    - `curvature`: bound of the loss's second derivative, for L1 penalties and `softmax`.
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
        """Centre and scale of the columns, what makes steps cheap, and where to start.

        A start that is not a number stands for none.
        """
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
        if self._closed(x):
            if x.shape[1] <= x.shape[0]:
                whole = (x - centre) / scale
                extra["gram"] = whole.T @ (train[:, None] * whole)
            return extra
        if self.has_l1:
            extra["norm"] = squared_norm(x, share, centre, scale)
        extra["start"] = np.full((x.shape[1] + 1, y.shape[1]), np.nan)
        return extra

    def _closed(self, x: Any) -> bool:
        """Whether there is a linear system that is small enough to be solved by factorisation."""
        dense = isinstance(x, np.ndarray | jax.Array)
        return self.quadratic and not self.has_l1 and dense and min(x.shape) <= _CLOSED

    def _units(self, fold: Fold) -> Array:
        """By what a penalty is multiplied beside a mean loss."""
        return jnp.ones(()) if self.average else 1.0 / jnp.sum(fold.train)

    def _loss(self, predictor: Array, fold: Fold) -> Scalar:
        loss = jnp.sum(fold.train[:, None] * self.loss(predictor, fold.y))
        return loss / jnp.sum(fold.train)

    def _l2(self, h: Hyperparameters, fold: Fold) -> Array:
        """The L2 penalties of the scaled columns, beside a mean loss."""
        scale = fold.extra["scale"]
        return jnp.broadcast_to(self.penalties(h)[1], scale.shape) / scale**2 * self._units(fold)

    def _bent(self, w: Array, h: Hyperparameters, fold: Fold) -> Array:
        """The product with the Hessian of the quadratic penalties."""
        first, last = self._l2(h, fold)[:, None] * w[:-1], w[-1]
        if not self.estimator.fit_intercept:
            return jnp.concatenate([first, last[None]])
        moved = jnp.zeros_like(last)
        if self.intercept_penalty:
            # In units of the columns; the columns' centres have their part in it.
            shift = (fold.extra["centre"] / fold.extra["scale"])[:, None]
            strength = self.intercept_penalty * self._unit(h) * self._units(fold)
            pushed = strength * (last - jnp.sum(shift * w[:-1], axis=0))
            first, moved = first - shift * pushed, moved + pushed
        if self.softmax:
            assert self.curvature is not None
            # Logits are unique up to a shift, which the penalty does not see in intercepts. This is
            # no steeper than the loss, whose curvature is zero there: steps need not be shorter.
            moved += self.curvature * jnp.mean(last)
        return jnp.concatenate([first, moved[None]])

    def _penalty(self, h: Hyperparameters, fold: Fold) -> Penalty:
        own = self.intercept_penalty * self._unit(h) * self._units(fold)
        if self.softmax:
            assert self.curvature is not None
            own += self.curvature / fold.y.shape[1]
        own = own if self.estimator.fit_intercept else jnp.ones(())
        column = jnp.append(self._l2(h, fold), own)
        diagonal = jnp.broadcast_to(column[:, None], (len(column), fold.y.shape[1]))
        return Penalty(lambda w: self._bent(w, h, fold), diagonal)

    def _unit(self, h: Hyperparameters) -> Array:
        """The penalty of a feature whose factor is one."""
        strength = self.value(h, self.strength)
        return geometric_mean(1.0 / strength if self.inverse else strength)

    def _cold(self, fold: Fold) -> Array:
        """Parameters without features; the last row is the intercept."""
        mean = fold.train @ fold.y / jnp.sum(fold.train)
        last = self.start(mean) if self.estimator.fit_intercept else jnp.zeros_like(mean)
        return jnp.zeros((fold.x.shape[1] + 1, fold.y.shape[1]), fold.y.dtype).at[-1].set(last)

    def respond(self, h: Hyperparameters, fold: Fold, measure: Measure) -> Response:
        """See `Model.respond`."""

        def judged(w: Array) -> Scalar:
            return measure({"coef": w[:-1], "intercept": w[-1]}, h, fold)

        pull = jax.grad(judged)
        if self._closed(fold.x):
            w, adjoint = self._factorised(h, fold, pull)
            return Response(judged(w), self._derivative(w, adjoint, h, fold), jnp.zeros(()))
        columns = Columns.of(fold, self.estimator.fit_intercept)
        cold = self._cold(fold)
        known = jnp.all(jnp.isfinite(fold.extra["start"]))
        start = jnp.where(known, fold.extra["start"], cold)
        tolerance = _TOLERANCE
        if columns.entries * fold.y.shape[1] > _MANY:
            tolerance = _COARSE if self.has_l1 else _CORRECTED
        if self.has_l1:
            found = self._proximal(h, fold, columns, pull, start, cold, tolerance)
        else:
            found = newton(
                lambda predictor: self._loss(predictor, fold),
                columns,
                self._penalty(h, fold),
                pull,
                start,
                cold,
                tol=tolerance,
                max_steps=_MOST_NEWTON_STEPS,
            )
        slope = self._derivative(found.params, found.adjoint, h, fold)
        slope = {name: jnp.where(found.bad, jnp.nan, part) for name, part in slope.items()}
        value = judged(found.params) - found.correction
        return Response(value, slope, found.residual, found.params)

    def _derivative(
        self, w: Array, adjoint: Array, h: Hyperparameters, fold: Fold
    ) -> dict[str, Array]:
        """The criterion's: only the penalties depend on hyperparameters."""

        def pushed(h: Hyperparameters) -> Scalar:
            product = -jnp.sum(adjoint * self._bent(w, h, fold))
            if self.has_l1:
                product -= jnp.sum(adjoint * jnp.sign(w) * self._thresholds(h, fold))
            return product

        return jax.grad(pushed)(dict(h))

    def _thresholds(self, h: Hyperparameters, fold: Fold) -> Array:
        """The L1 penalties of the scaled columns, beside a mean loss; none of the intercept."""
        scale = fold.extra["scale"]
        l1 = jnp.broadcast_to(self.penalties(h)[0], scale.shape) / scale * self._units(fold)
        return jnp.append(l1, 0.0)[:, None]

    def _factorised(self, h: Hyperparameters, fold: Fold, pull: Callable) -> tuple[Array, Array]:
        """Least squares with L2 penalties: a system of the smaller of both sizes, factorised once.

        The intercept is the mean of the targets, as columns are centred, whatever the penalties.
        """
        scale = fold.extra["scale"]
        last = (fold.train @ fold.y / jnp.sum(fold.train))[None]
        last = last if self.estimator.fit_intercept else jnp.zeros_like(last)
        l2 = jnp.broadcast_to(self.penalties(h)[1], scale.shape) / scale**2
        x = (fold.x - fold.extra["centre"]) / scale
        y = fold.train[:, None] * (fold.y - last)
        if "gram" in fold.extra:
            factor = jnp.linalg.cholesky(fold.extra["gram"] + jnp.diag(l2))

            def inverse(r: Array) -> Array:
                return jax.scipy.linalg.cho_solve((factor, True), r)

            w = inverse(x.T @ y)
        else:
            x = jnp.sqrt(fold.train)[:, None] * x
            factor = jnp.linalg.cholesky((x / l2) @ x.T + jnp.eye(len(x)))

            def inverse(r: Array) -> Array:
                r = r / l2[:, None]
                return r - (x.T @ jax.scipy.linalg.cho_solve((factor, True), x @ r)) / l2[:, None]

            root = jnp.sqrt(fold.train)[:, None] * (fold.y - last)
            w = (x.T @ jax.scipy.linalg.cho_solve((factor, True), root)) / l2[:, None]
        w = jnp.concatenate([w, last])
        # The penalties stand beside a sum here; `_bent` has them beside a mean.
        adjoint = inverse(pull(w)[:-1]) / self._units(fold)
        return w, jnp.concatenate([adjoint, jnp.zeros_like(last)])

    def _proximal(
        self,
        h: Hyperparameters,
        fold: Fold,
        columns: Columns,
        pull: Callable,
        start: Array,
        cold: Array,
        tolerance: float,
    ) -> Trained:
        """With an L1 penalty; the adjoint system lives on the support (Bertrand et al. 2020)."""
        assert self.curvature is not None
        slope = jax.grad(lambda predictor: self._loss(predictor, fold))
        penalty = self._penalty(h, fold)

        def gradient(w: Array) -> Array:
            return columns.adjoint(slope(columns.times(w))) + penalty.product(w)

        largest = self.curvature * jnp.maximum(fold.extra["norm"], 1.0)
        step = 1.0 / (largest + jnp.max(self._l2(h, fold)))
        whole = jnp.linalg.norm(gradient(cold))
        w, residual = proximal_gradient(
            gradient,
            self._thresholds(h, fold),
            step,
            start,
            goal=tolerance * whole,
            max_steps=_MOST_STEPS,
        )
        support = (w != 0).at[-1].set(True)
        solve = Hessians(columns, slope, penalty).at(columns.times(w), support)
        adjoint, bad = solve(support * pull(w), tolerance)
        if columns.small and w.shape[1] == 1:
            # The matrix is factorised: a Newton step on the support costs nothing.
            tilt = gradient(w) + self._thresholds(h, fold) * jnp.sign(w)
            moved = w - solve(support * tilt, tolerance)[0]
            same = jnp.all(jnp.sign(moved[:-1]) == jnp.sign(w[:-1]))
            w = jnp.where(same, moved, w)
        return Trained(w, adjoint, jnp.zeros_like(whole), residual / whole, bad)

    def coefficients(self, params: PyTree, fold: Fold) -> tuple[Array, Array]:
        """Coefficients `(m, p)` and intercepts `(m,)` in the units of the columns."""
        w = params["coef"] / fold.extra["scale"][:, None]
        return w.T, params["intercept"] - fold.extra["centre"] @ w

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`."""
        w = params["coef"] / fold.extra["scale"][:, None]
        return self.mean(fold.x @ w + (params["intercept"] - fold.extra["centre"] @ w))
