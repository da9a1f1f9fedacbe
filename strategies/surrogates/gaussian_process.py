"""Gaussian process regression on values and, where there are any, directional derivatives.

A Matérn-5/2 prior with one length scale per group of coordinates. With scaled differences
`D = (x - x') / l`, `r = |D|`, `e = exp(-√5 r)`, and scaled directions `a`, `b`:

    cov(f, f')      = s² (1 + √5 r + 5/3 r²) e
    cov(f, ∂_b f')  = s² ψ ⟨D, b⟩                       ψ = 5/3 (1 + √5 r) e
    cov(∂_a f, f')  = -s² ψ ⟨D, a⟩
    cov(∂_a f, ∂_b f') = s² (ψ ⟨a, b⟩ - χ ⟨D, a⟩ ⟨D, b⟩)   χ = 25/3 e

(Wu, Poloczek, Wilson & Frazier 2017; Rasmussen & Williams 2006, section 9.4). Every observation is
a row: a value, or a derivative along one direction. A gradient contributes as many rows as one can
afford, from all coordinate directions down to a single one, by the same formulae.

Written in NumPy: the matrices are small, the derivative of the marginal likelihood is a handful of
matrix products, and a searcher then costs no compilation and touches no accelerator.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_ROOT5 = np.sqrt(5.0)
_JITTER = 1e-8


@dataclass(frozen=True)
class Rows:
    """What was observed, one number a row.

    - `x`: `(n, d)`, where.
    - `direction`: `(n, d)`, along what; zero rows are values.
    - `noise`: `(n,)`, standard deviation known beforehand, in the units of the row.
    """

    x: Matrix
    direction: Matrix
    noise: Vector

    @staticmethod
    def values(x: Matrix) -> "Rows":
        """Plain values at the rows of `x`."""
        return Rows(x, np.zeros_like(x), np.zeros(len(x)))

    @property
    def is_value(self) -> Vector:
        """1 for values, 0 for derivatives."""
        return 1.0 - np.any(self.direction != 0, axis=1)

    def join(self, other: "Rows") -> "Rows":
        """These rows, then the others."""
        return Rows(
            np.r_[self.x, other.x],
            np.r_[self.direction, other.direction],
            np.r_[self.noise, other.noise],
        )

    def take(self, index: NDArray) -> "Rows":
        """The rows at `index`."""
        return Rows(self.x[index], self.direction[index], self.noise[index])


@dataclass(frozen=True)
class Prior:
    """Normal priors on the logarithms of the hyperparameters: medians, log standard deviations.

    - `lengthscale`: median, in units of the cube's side, before the factor `√d` that keeps the
      prior correlation of two random points the same in every dimension (Hvarfner et al. 2024).
    - `noise`: variance of the values, relative to their spread.
    - `gradient_noise`: the same for derivatives.
    """

    lengthscale: float = 0.3
    lengthscale_spread: float = 0.5
    noise: float = 1e-2
    noise_spread: float = 3.0
    gradient_noise: float = 1e-4
    gradient_noise_spread: float = 2.0
    signal_spread: float = 0.5


def _matern(r: Any) -> Any:
    root = _ROOT5 * r
    return (1 + root + root**2 / 3) * np.exp(-root)


def _distance(xa: Matrix, xb: Matrix) -> Matrix:
    squared = (-2 * xa) @ xb.T
    squared += np.einsum("ij,ij->i", xa, xa)[:, None]
    squared += np.einsum("ij,ij->i", xb, xb)
    return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)


def _of_values(xa: Matrix, b: Rows, scales: Vector) -> Matrix:
    """Covariances of values, at points in units of the length scales, with rows."""
    xb = b.x / scales
    if not b.direction.any():  # the same with less work
        return _matern(_distance(xa, xb))
    ub, vb = b.direction / scales, b.is_value
    root = _ROOT5 * _distance(xa, xb)
    e = np.exp(-root)
    slope = 5 / 3 * (xa @ ub.T - np.sum(xb * ub, 1))
    return ((1 + root) * (vb + slope) + vb / 3 * root**2) * e


def _correlation(rows: Rows, scales: Vector) -> tuple[Matrix, Callable[[Matrix], Vector]]:
    """Covariances of rows among themselves, for a signal of one, and their slopes.

    **Returns:** The matrix, and the function from a symmetric `weight` to the derivatives of
    `⟨weight, matrix⟩` with respect to the logarithm of each coordinate's scale.
    """
    x, u, of_value = rows.x / scales, rows.direction / scales, rows.is_value
    root = _ROOT5 * _distance(x, x)
    e = np.exp(-root)
    psi = 5 / 3 * (1 + root) * e
    if of_value.all():  # the same with less work
        return 0.6 * psi + root**2 / 3 * e, lambda weight: _by_places(-0.5 * weight * psi, x)
    chi = 25 / 3 * e
    both = np.outer(of_value, of_value)
    # ⟨D, a⟩ for the row's own direction; for the other's it is the transpose with a minus.
    along = np.einsum("ij,ij->i", u, x)[:, None] - u @ x.T
    product = along * along.T
    crossed = along * of_value
    crossed = u @ u.T - crossed - crossed.T
    matrix = both * (0.6 * psi + root**2 / 3 * e) + psi * crossed + chi * product

    def slopes(weight: Matrix) -> Vector:
        # dχ/dr² has a 1/r that the product of the two slopes, of order r², takes away.
        bent = product * (5 / np.maximum(root, 1e-12))
        by_squared = -0.5 * weight * (psi * both + chi * (crossed + bent))
        by_along = weight * (chi * along.T - psi * of_value)
        by_dots = weight * psi
        total = _by_places(by_squared, x)
        total -= 4 * (by_along.sum(1) @ (u * x) - np.sum(u * (by_along @ x), 0))
        return total - 2 * np.sum(u * (by_dots @ u), 0)

    return matrix, slopes


def _by_places(by_squared: Matrix, x: Matrix) -> Vector:
    """Derivatives by the logarithms of the scales through the squared distances."""
    return -4 * (by_squared.sum(1) @ x**2 - np.sum(x * (by_squared @ x), 0))


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process. Build one with `fit`."""

    rows: Rows
    scales: Vector
    signal: float
    noise: float
    gradient_noise: float
    factor: Matrix
    weights: Vector

    def predict(self, x: Matrix) -> tuple[Vector, Vector]:
        """Posterior mean and standard deviation of the noiseless function at the rows of `x`."""
        cross = self.signal * _of_values(x / self.scales, self.rows, self.scales)
        half = cross @ self._inverse_factor.T
        variance = self.signal - np.einsum("ij,ij->i", half, half)
        variance = np.maximum(variance, 1e-12 * self.signal)
        return cross @ self.weights, np.sqrt(variance)

    def predict_change(self, x: Matrix, at: Vector, through: Vector) -> tuple[Vector, Vector]:
        """Posterior mean at the rows of `x`, and the standard deviation of its change.

        The last coordinates are `at` for all rows; the change is that by one more observation of
        the same row with `through` there: the posterior covariance of the two over the deviation
        of what would be observed.
        """
        of_x, of_through = self._of_places(x, at, through)
        half_x = of_x @ self._inverse_factor.T
        half_through = of_through @ self._inverse_factor.T
        between = np.linalg.norm((at - through) / self.scales[-len(at) :])
        prior = self.signal * _matern(between)
        shared = np.abs(prior - np.einsum("ij,ij->i", half_x, half_through))
        variance = self.signal - np.einsum("ij,ij->i", half_through, half_through)
        observed = np.maximum(variance, 0.0) + self.noise + _JITTER * self.signal
        change = np.maximum(shared / np.sqrt(observed), 1e-6 * np.sqrt(self.signal))
        return of_x @ self.weights, change

    def _of_places(self, x: Matrix, *places: Vector) -> list[Matrix]:
        """Covariances with the rows of the process, once for each of the last coordinates."""
        if self.rows.direction.any():
            lifted = [np.c_[x, np.broadcast_to(place, (len(x), len(place)))] for place in places]
            return [
                self.signal * _of_values(points / self.scales, self.rows, self.scales)
                for points in lifted
            ]
        width = x.shape[1]
        known = self.rows.x / self.scales
        apart = _distance(x / self.scales[:width], known[:, :width]) ** 2
        further = [
            np.sum((place / self.scales[width:] - known[:, width:]) ** 2, 1) for place in places
        ]
        return [self.signal * _matern(np.sqrt(apart + row)) for row in further]

    @functools.cached_property
    def _inverse_factor(self) -> Matrix:
        # A product with it takes half the time of a triangular solve.
        return solve_triangular(
            self.factor, np.eye(len(self.factor)), lower=True, check_finite=False
        )

    def predict_slopes(
        self, x: Vector, coordinates: NDArray[np.intp]
    ) -> tuple[Vector, Vector, Vector, Vector]:
        """Mean and standard deviation at one point, and their derivatives along `coordinates`.

        The derivative of the prior covariance with the data is the covariance of the derivative.
        """
        known, along, is_value = self._scaled
        away = x / self.scales - known
        root = _ROOT5 * np.sqrt(np.einsum("ij,ij->i", away, away))
        e = self.signal * np.exp(-root)
        psi, dots = 5 / 3 * (1 + root) * e, np.einsum("ij,ij->i", away, along)
        cross = is_value * (1 + root + root**2 / 3) * e + psi * dots
        bent = is_value * psi + 25 / 3 * e * dots
        by_x = (psi[:, None] * along - bent[:, None] * away)[:, coordinates]
        by_x = by_x / self.scales[coordinates]
        half = self._inverse_factor @ cross
        variance = max(self.signal - half @ half, 1e-12 * self.signal)
        solved = self._inverse_factor.T @ half
        deviation = np.sqrt(variance)
        return cross @ self.weights, deviation, self.weights @ by_x, -(solved @ by_x) / deviation

    @functools.cached_property
    def _scaled(self) -> tuple[Matrix, Matrix, Vector]:
        rows = self.rows
        return rows.x / self.scales, rows.direction / self.scales, rows.is_value

    def left_out(self) -> Vector:
        """How far each row is from what all others predict (Rasmussen & Williams 2006, 5.12)."""
        return self.weights / np.sum(self._inverse_factor**2, axis=0)

    def condition(self, rows: Rows, y: Vector) -> "GaussianProcess":
        """The same hyperparameters on other data."""
        return _posterior(rows, y, self.scales, self.signal, self.noise, self.gradient_noise)


def _noise(rows: Rows, noise: float, gradient_noise: float) -> Vector:
    return np.where(rows.is_value > 0, noise, gradient_noise) + rows.noise**2


def _cholesky(matrix: Matrix) -> Matrix:
    jitter = _JITTER * float(np.mean(np.diag(matrix)))
    while True:
        try:
            shifted = matrix.copy()
            shifted[np.diag_indices_from(shifted)] += jitter
            return cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            jitter *= 10


def _posterior(
    rows: Rows,
    y: Vector,
    scales: Vector,
    signal: float,
    noise: float,
    gradient_noise: float,
) -> GaussianProcess:
    matrix = signal * _correlation(rows, scales)[0]
    matrix[np.diag_indices_from(matrix)] += _noise(rows, noise, gradient_noise)
    factor = _cholesky(matrix)
    weights = cho_solve((factor, True), y, check_finite=False)
    return GaussianProcess(rows, scales, signal, noise, gradient_noise, factor, weights)


def fit(
    rows: Rows,
    y: Vector,
    groups: NDArray[np.intp],
    *,
    prior: Prior = Prior(),
    iterations: int = 30,
    fit_rows: NDArray[np.intp] | None = None,
) -> GaussianProcess:
    """The process at the most probable hyperparameters.

    **Arguments:**

    - `rows`, `y`: the observations; values are expected centred with unit spread.
    - `groups`: `(d,)`, the length scale that each coordinate uses (the columns of one categorical
      share theirs).
    - `prior`: on the hyperparameters.
    - `iterations`: of L-BFGS on the log posterior.
    - `fit_rows`: the rows used to find the hyperparameters, all by default; the posterior is on
      all.
    """
    sample, target = (rows, y) if fit_rows is None else (rows.take(fit_rows), y[fit_rows])
    count = int(groups.max()) + 1
    center = np.log(
        np.r_[
            np.full(count, prior.lengthscale * np.sqrt(count)),
            1.0,
            prior.noise,
            prior.gradient_noise,
        ]
    )
    spread = np.r_[
        np.full(count, prior.lengthscale_spread),
        prior.signal_spread,
        prior.noise_spread,
        prior.gradient_noise_spread,
    ]
    is_value = sample.is_value

    def negative_log_posterior(theta: Vector) -> tuple[float, Vector]:
        scales = np.exp(theta[:count])[groups]
        signal, noise, gradient_noise = np.exp(theta[count:])
        correlation, slopes = _correlation(sample, scales)
        matrix = signal * correlation
        matrix[np.diag_indices_from(matrix)] += _noise(sample, noise, gradient_noise)
        factor = _cholesky(matrix)
        weights = cho_solve((factor, True), target, check_finite=False)
        # Half of the inverse, from which the other half follows.
        pull = dpotri(factor, lower=True)[0]
        pull += np.tril(pull, -1).T
        pull -= np.outer(weights, weights)
        pull *= 0.5
        by_scale = signal * slopes(pull)
        slope = np.r_[
            np.bincount(groups, weights=by_scale, minlength=count),
            signal * np.sum(pull * correlation),
            noise * np.sum(np.diag(pull) * is_value),
            gradient_noise * np.sum(np.diag(pull) * (1 - is_value)),
        ]
        offset = (theta - center) / spread
        value = 0.5 * target @ weights + np.sum(np.log(np.diag(factor))) + 0.5 * offset @ offset
        return float(value), slope + offset / spread

    best = minimize(
        negative_log_posterior,
        center,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(center - 4 * spread, center + 4 * spread, strict=True)),
        # A ten-thousandth of the likelihood is less than the data say about it.
        options={"maxiter": iterations, "ftol": 1e-6},
    ).x
    signal, noise, gradient_noise = (float(v) for v in np.exp(best[count:]))
    return _posterior(rows, y, np.exp(best[:count])[groups], signal, noise, gradient_noise)
