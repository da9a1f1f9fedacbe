"""A network and a ball of weights around it: what is believed of a function of known form.

GO-UCB (Liu & Wang, "Global optimization with parametric function approximation", ICML 2023): with
`g_i = ∇_w f_{x_i}(w₀)` at points that were evaluated, `Σ = λ I + Σ_i g_i g_iᵀ`, the centre is the
ridge solution of the linearised network, `ŵ = w₀ + Σ⁻¹ Σ_i g_i (y_i - f_{x_i}(w₀))`, and the ball
`(w - ŵ)ᵀ Σ (w - ŵ) <= β`. The least that a network of the ball can take at a point is what a
search that minimises goes by. To first order it is `f_x(ŵ) - √β ‖∇_w f_x(ŵ)‖_{Σ⁻¹}`.

There are far more weights than points, so everything is done with the points' Gram matrix:
`Σ⁻¹ v = (v - Gᵀ (λ I + G Gᵀ)⁻¹ G v) / λ` for `G`, `(n, p)`, of rows `g_i`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from strategies.surrogates.network import Network

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Of a step towards the end of a linearisation, what fractions are tried.
_FRACTIONS = (1.0, 0.5, 0.25, 0.1)
#: Points whose derivatives by the weights are held at a time.
_CHUNK = 512


@dataclass(frozen=True)
class WeightBall:
    """The ball. Build one with `weight_ball`.

    - `network`, `center`: what predicts, and its weights `(p,)`.
    - `ridge`: λ.
    - `beta`: the square of the radius, in the norm of Σ.
    - `rows`: `(n, p)`, the derivatives `g_i`.
    - `factor`: Cholesky factor of `λ I + G Gᵀ`.
    """

    network: Network
    center: Vector
    ridge: float
    beta: float
    rows: Matrix
    factor: tuple[Matrix, bool]

    def solved(self, v: Matrix) -> Matrix:
        """`Σ⁻¹` times the rows of `v`."""
        inner = cho_solve(self.factor, self.rows @ v.T)
        return np.asarray((v - inner.T @ self.rows) / self.ridge)

    def squared(self, w: Vector) -> float:
        """`(w - ŵ)ᵀ Σ (w - ŵ)`."""
        away = w - self.center
        return float(self.ridge * away @ away + np.sum((self.rows @ away) ** 2))

    def predict(self, x: Matrix) -> tuple[Vector, Vector]:
        """What the centre predicts, and how far the ball reaches to first order, `(n,)` each."""
        mean = self.network.values(self.center[None], x)[0]
        reach = np.empty(len(x))
        for start in range(0, len(x), _CHUNK):
            g = self.network.by_weights(self.center, x[start : start + _CHUNK])
            square = np.einsum("ij,ij->i", g, self.solved(g))
            reach[start : start + _CHUNK] = np.sqrt(self.beta * np.maximum(square, 0.0))
        return mean, reach

    def lowest(self, x: Vector, steps: int = 5) -> tuple[Vector, float]:
        """Weights of the ball that predict the least at one point, and that prediction.

        Each step goes towards where the network, made linear at the weights so far, is least in
        the ball, as far as the network itself falls (Frank & Wolfe 1956): every iterate is inside.
        The first whole step is the first-order answer.
        """
        w, value = self.center, float(self.network.values(self.center[None], x[None])[0, 0])
        for _ in range(steps):
            g = self.network.by_weights(w, x[None])
            way = self.solved(g)[0]
            size = float(np.sqrt(max(float(g[0] @ way), 1e-300)))
            end = self.center - np.sqrt(self.beta) * way / size
            tried = np.stack([w + fraction * (end - w) for fraction in _FRACTIONS])
            values = self.network.values(tried, x[None])[:, 0]
            best = int(np.argmin(values))
            if not values[best] < value:
                break
            w, value = tried[best], float(values[best])
        return w, value


def weight_ball(
    network: Network,
    start: Vector,
    x: Matrix,
    y: Vector,
    *,
    ridge: float,
    beta: float,
) -> WeightBall:
    """The ball around the ridge solution of a network made linear at `start`.

    **Arguments:**

    - `start`: `(p,)`, weights w₀.
    - `x`, `y`: `(n, inputs)` and `(n,)`, what was observed since; NaN for what is pending, which
      narrows the ball and does not move it.
    - `ridge`: λ.
    - `beta`: square of the radius.
    """
    rows = network.by_weights(start, x)
    missed = np.nan_to_num(y - network.values(start[None], x)[0])
    gram = rows @ rows.T
    gram[np.diag_indices_from(gram)] += ridge
    factor = cho_factor(gram, lower=True)
    # Σ⁻¹ Gᵀ r = Gᵀ (λ I + G Gᵀ)⁻¹ r
    center = start + rows.T @ cho_solve(factor, missed)
    return WeightBall(network, center, ridge, beta, rows, factor)


__all__ = ["WeightBall", "weight_ball"]
