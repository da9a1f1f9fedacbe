"""GO-UCB: search with a network whose form is right, or nearly, for what is searched.

Liu & Wang, "Global optimization with parametric function approximation" (ICML 2023). In the first
phase points are drawn at random and the network is fitted to them; in the second the configuration
is tried at which the most optimistic network of a ball of weights predicts the least
(`strategies.surrogates.weight_ball`). The regret of a Gaussian process grows exponentially with the
dimension where nothing but smoothness is known; that of a parametric form does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from strategies.arguments import integer, positive, several, switch
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.candidates import maximise
from strategies.surrogates.network import Network, adam
from strategies.surrogates.outputs import imputed, standardised
from strategies.surrogates.startup import sobol_point
from strategies.surrogates.weight_ball import WeightBall, weight_ball

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Hidden units, unless the user says how many.
_UNITS = 25
#: Fits from different weights, of which the best counts; steps and rate of each.
_FITS, _TRAINING, _RATE = 4, 500, 3e-2
_DECAY = 1e-4
#: Best points whose neighbourhoods are looked at, and rounds of the ascent in turns.
_ANCHORS, _TURNS = 5, 3


class ParametricSearcher(Searcher):
    """Optimism over a small neural network's weights.

    Values only; constraints are ranked, failed trials count as the worst, pending suggestions
    narrow the ball. A suggestion takes a few tenths of a second, whatever the dimension.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `network`: hidden units, one number for each layer of tanh units. Default: one layer of 25.
    - `startup`: points of a scrambled Sobol sequence before the first network.
    - `beta`: square of the ball's radius, where values have unit spread: larger explores more.
    - `ridge`: λ, at least 1e-3: units of a network can be exchanged, so that some directions of the
      weights are never seen.
    - `refit`: fit the network to all results before each suggestion. Otherwise, as in the paper, to
      those of the startup only, and the rest moves the ball.
    - `exact`: the least prediction in the ball by ascent in weights and coordinates in turns; else
      to first order.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        network: Sequence[int] | None = None,
        startup: int = 25,
        beta: float = 0.05,
        ridge: float = 1.0,
        refit: bool = True,
        exact: bool = True,
    ):
        super().__init__(space, seed=seed, first=first)
        hidden = (_UNITS,) if network is None else several("network", network, "hidden units")
        units = [integer("network", each, 1) for each in hidden]
        if not units:
            raise ValueError("'network': expected at least one hidden layer, received none")
        self.network = Network((self.space.dimension, *units, 1))
        self.startup = integer("startup", startup, 2)
        self.beta = float(positive("beta", beta))
        self.ridge = float(positive("ridge", ridge))
        if self.ridge < 1e-3:
            raise ValueError(f"'ridge': expected a number >= 1e-3, received {ridge!r:.80}")
        self.refit = switch("refit", refit)
        self.exact = switch("exact", exact)

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        usable = [item for item in history if item.status != "failed"]
        if len(usable) < self.startup:
            config = self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))
            return Suggestion(number, config, {"origin": "startup"})
        rng = self.rng(number)
        ball = self._believe(history, pending, rng)
        order = sorted(usable, key=lambda item: item.rank)[:_ANCHORS]
        tried = np.stack([item.unit for item in [*history, *pending]])

        def score(units: Matrix) -> Vector:
            mean, reach = ball.predict(units - 0.5)
            return reach - mean

        point = maximise(
            self.space,
            score,
            np.stack([item.unit for item in order]),
            tried,
            rng,
            (lambda point, value: self._turns(ball, point)) if self.exact else None,
        )
        config = self.space.sample(rng) if point is None else self.space.decode(point)
        return Suggestion(number, config, {"origin": "model"})

    def _believe(
        self,
        history: Sequence[Observation],
        pending: Sequence[Suggestion],
        rng: np.random.Generator,
    ) -> WeightBall:
        values = np.array([np.nan if item.value is None else item.value for item in history], float)
        values[[item.status == "failed" for item in history]] = np.nan
        y, _ = standardised(imputed(values))
        x = np.stack([item.unit for item in history]) - 0.5
        fitted = slice(None) if self.refit else slice(self.startup)
        if not self.refit:
            rng = np.random.default_rng([self.seed, 4])
        start = self._trained(x[fitted], y[fitted], rng)
        waiting = np.array([item.unit for item in pending]).reshape(-1, x.shape[1]) - 0.5
        later = slice(None) if self.refit else slice(self.startup, None)
        places = np.r_[x[later], waiting]
        if not len(places):
            places, later = x, slice(None)
        known = np.r_[y[later], np.full(len(waiting), np.nan)]
        return weight_ball(self.network, start, places, known, ridge=self.ridge, beta=self.beta)

    def _trained(self, x: Matrix, y: Vector, rng: np.random.Generator) -> Vector:
        """The weights w₀: least squares, the best of several fits."""

        def slope(w: Matrix, step: int) -> Matrix:
            missed = self.network.pulled_back(w, x, lambda out: 2.0 * (out - y) / len(y))
            return missed + _DECAY * w

        found = adam(self.network.begin(rng, _FITS), slope, _TRAINING, _RATE)
        losses = np.mean((self.network.values(found, x) - y) ** 2, axis=1)
        return np.asarray(found[np.argmin(losses)])

    def _turns(self, ball: WeightBall, point: Vector) -> tuple[Vector, float]:
        """Ascent in turns: the best weights of the ball at a place, the best place for these."""
        free = np.flatnonzero(self.space.differentiable)
        best, (w, value) = point, ball.lowest(point - 0.5)
        for _ in range(_TURNS if len(free) else 0):
            moved = self._descended(best, w, free)
            w, lower = ball.lowest(moved - 0.5)
            if not lower < value:
                break
            best, value = moved, lower
        return best, -value

    def _descended(self, point: Vector, w: Vector, free: NDArray[np.intp]) -> Vector:
        def predicted(values: Vector) -> tuple[float, Vector]:
            moved = point.copy()
            moved[free] = values
            out, slope = self.network.by_inputs(w[None], moved[None] - 0.5)
            return float(out[0, 0]), slope[0, 0, free]

        found = minimize(
            predicted,
            point[free],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * len(free),
            options={"maxiter": 20},
        )
        moved = point.copy()
        moved[free] = found.x
        return moved
