"""Tsallis-INF: of the fixed arms as good as the best, whatever the losses do.

Zimmert & Seldin, "Tsallis-INF" (JMLR 2021); with losses scaled by their running mean, and a learner
for each bin of a context, as in Khodak et al., "Learning to relax" (ICLR 2024).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hypergrad.bandit import tsallis_inf
from strategies.arguments import integer
from strategies.bandits.base import Bandit, Learner, interval
from strategies.space import SearchSpace

#: Bins that instances can still fill.
_BINS = 10_000


class _Sums(Learner):
    """Sums of importance-weighted losses."""

    def __init__(self, arms: int) -> None:
        self.sums = np.zeros(arms)
        self.rounds = 0
        self.total = 0.0

    def learn(self, arm: int, loss: float, probability: float, context: float | None) -> None:
        self.sums[arm] += loss / probability
        self.total += loss
        self.rounds += 1

    def probabilities(self, context: float | None) -> np.ndarray:
        scale = self.total / self.rounds if self.total > 0 else 1.0
        return tsallis_inf(self.sums / scale, 2 / np.sqrt(self.rounds + 1))


class TsallisINF(Bandit):
    """Knows nothing of the instances; its sum of losses approaches that of the best fixed arm.

    In `T` rounds with `K` arms it loses at most about `4 sqrt(K T)` times the scale of the losses
    against the best arm in hindsight, and far less where the losses are independent draws.

    **Arguments:** those of `Bandit`.
    """

    def learner(self) -> Learner:
        """See `Bandit.learner`."""
        return _Sums(len(self.arms))


class _Binned(Learner):
    def __init__(self, arms: int, edges: np.ndarray) -> None:
        self.edges = edges
        self.learners = [_Sums(arms) for _ in range(len(edges) + 1)]

    def learn(self, arm: int, loss: float, probability: float, context: float | None) -> None:
        self._of(context).learn(arm, loss, probability, None)

    def probabilities(self, context: float | None) -> np.ndarray:
        return self._of(context).probabilities(None)

    def _of(self, context: float | None) -> _Sums:
        return self.learners[int(np.searchsorted(self.edges, context or 0.0))]


class BinnedTsallisINF(Bandit):
    """A `TsallisINF` for each bin of a context, a number that is known of an instance beforehand.

    **Arguments:** those of `Bandit`, and

    - `contexts`: `(low, high)`, their range; contexts beyond belong to the outer bins.
    - `bins`: equal parts of it. Default 5.
    """

    contextual = True

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        contexts: tuple[float, float],
        *,
        bins: int = 5,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        lowest: float = 1.0,
        failed: float | None = None,
    ):
        super().__init__(space, seed=seed, first=first, lowest=lowest, failed=failed)
        low, high = interval(contexts)
        bins = integer("bins", bins, 1)
        if bins > _BINS:
            raise ValueError(f"'bins': expected at most {_BINS}, received {bins!r:.80}")
        self.edges = np.linspace(low, high, bins + 1)[1:-1]

    def learner(self) -> Learner:
        """See `Bandit.learner`."""
        return _Binned(len(self.arms), self.edges)
