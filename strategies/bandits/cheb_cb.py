"""ChebCB: the loss of each arm as a smooth function of a context.

Khodak et al., "Learning to relax: setting solver parameters across a sequence of linear system
instances" (ICLR 2024), algorithm 2: least squares in Chebyshev polynomials with the coefficients
that a Lipschitz function can have, and arms drawn by SquareCB (Foster & Rakhlin, ICML 2020).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from strategies.arguments import integer
from strategies.bandits.base import Bandit, Learner, interval
from strategies.space import SearchSpace

#: Singular values below this share of the largest count as zero in a fit.
_RANK = 1e-10


class _Fits(Learner):
    """For each arm the normal equations of its losses, and the fit to them."""

    def __init__(self, arms: int, contexts: tuple[float, float], terms: int) -> None:
        self.contexts, self.terms = contexts, terms
        self.grams = np.zeros((arms, terms, terms))
        self.products = np.zeros((arms, terms))
        self.of_arm: list[list[float]] = [[] for _ in range(arms)]
        self.coefficients = np.zeros((arms, terms))
        self.left = np.zeros(arms)
        self.low, self.high, self.scale = np.inf, 0.0, 0.0
        self.predicted: list[float] = []
        self.losses: list[float] = []

    def learn(self, arm: int, loss: float, probability: float, context: float | None) -> None:
        features = self._features(context)
        self.predicted.append(float(self.coefficients[arm] @ features))
        self.losses.append(loss)
        self.grams[arm] += np.outer(features, features)
        self.products[arm] += loss * features
        self.of_arm[arm].append(loss)
        self.low, self.high = min(self.low, loss), max(self.high, loss)
        before, self.scale = self.scale, self._largest * self._spread
        # The scale enters every fit, by its bounds.
        for each in range(len(self.grams)) if self.scale != before else (arm,):
            self._fit(each)

    @property
    def _largest(self) -> float:
        """K, an upper bound of the losses, at least so large that one can divide by it."""
        return self.high if self.high > 0 else 1.0

    @property
    def _variation(self) -> float:
        """By how much losses differ over all contexts: width times L."""
        return max(self.high - self.low, 0.0)

    @property
    def _spread(self) -> float:
        """N, by which losses over K are divided so that fits stay within [-1, 1]."""
        return 2 + 4 * self._variation / self._largest * (1 + np.log(self.terms))

    def _fit(self, arm: int) -> None:
        """Least squares of the scaled losses, within the bounds of a Lipschitz function."""
        if not self.of_arm[arm]:
            return
        values, vectors = np.linalg.eigh(self.grams[arm])
        kept = values > _RANK * values[-1]
        roots = np.sqrt(values[kept])
        # The rows and the target of an equal problem with no more rows than terms.
        rows = roots[:, None] * vectors[:, kept].T
        target = vectors[:, kept].T @ self.products[arm] / roots / self.scale
        free = vectors[:, kept] @ (target / roots)
        orders = np.arange(1, self.terms)
        bounds = np.r_[1 / self._spread, 2 * self._variation / (self.scale * orders)]
        if (np.abs(free) > bounds).any():
            # Bounds of no width are no interval.
            bounds = np.maximum(bounds, 1e-12)
            free = lsq_linear(rows, target, (-bounds, bounds), method="bvls").x
        self.coefficients[arm] = free
        # Squared when they are scaled: losses may be of any size.
        losses = np.asarray(self.of_arm[arm]) / self.scale
        rest = losses @ losses - target @ target
        self.left[arm] = max(rest, 0.0) + float(np.sum((rows @ free - target) ** 2))

    def probabilities(self, context: float | None) -> np.ndarray:
        arms, rounds = len(self.grams), len(self.losses)
        if not rounds:
            return np.full(arms, 1 / arms)
        guess = self.coefficients @ self._features(context)
        best = int(np.argmin(guess))
        weights = 1 / (arms + self._rate(rounds, arms) * (guess - guess[best]))
        weights[best] = 0.0
        weights[best] = 1 - weights.sum()
        return weights

    def _rate(self, rounds: int, arms: int) -> float:
        """Of SquareCB, growing with the rounds as in the published program."""
        alpha = (np.pi + 2 / np.pi * np.log(2 * self.terms + 1)) * self._variation
        alpha /= 2 * self.scale * (self.terms + 1)
        wrong = np.asarray(self.predicted) - np.asarray(self.losses) / self.scale
        regret = max(float(wrong @ wrong) - float(self.left.sum()), 0.0) + 2 * alpha**2 * rounds
        # Without regret as large as it can be, and finite: it meets gaps of zero.
        return 2 * rounds * np.sqrt(arms * rounds) / np.sqrt(max(regret, np.finfo(float).tiny))

    def _features(self, context: float | None) -> np.ndarray:
        low, high = self.contexts
        place = np.clip((2 * (context or 0.0) - low - high) / (high - low), -1, 1)
        return np.cos(np.arange(self.terms) * np.arccos(place))


class ChebCB(Bandit):
    """Learns each arm's loss as a smooth function of the context, and plays near the best for it.

    Where the best arm moves with the context, this is what approaches the best arm of each
    instance; a bandit without context approaches the best fixed arm at most.

    **Arguments:** those of `Bandit`, and

    - `contexts`: `(low, high)`, the range of the contexts; beyond, they count as its ends.
    - `terms`: Chebyshev polynomials, from the constant on. Default 6.
    """

    contextual = True

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        contexts: tuple[float, float],
        *,
        terms: int = 6,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        lowest: float = 1.0,
        failed: float | None = None,
    ):
        super().__init__(space, seed=seed, first=first, lowest=lowest, failed=failed)
        self.contexts = interval(contexts)
        self.terms = integer("terms", terms, 2)

    def learner(self) -> Learner:
        """See `Bandit.learner`."""
        return _Fits(len(self.arms), self.contexts, self.terms)
