"""Tsallis-INF: of the fixed arms as good as the best, whatever the losses do.

Zimmert & Seldin, "Tsallis-INF: an optimal algorithm for stochastic and adversarial bandits" (JMLR
2021): follow the regularised leader with the Tsallis entropy of order 1/2. Of losses that were
estimated as `loss / probability` of the arms drawn it needs no bound on how they come about. Here
with losses scaled by their running mean, and a learner for each bin of a context, as in Khodak et
al., "Learning to relax" (ICLR 2024).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from strategies.arguments import integer
from strategies.bandits.base import Bandit, Learner, interval
from strategies.space import SearchSpace

#: Bins that instances can still fill.
_BINS = 10_000
#: Newton steps: from the start below they grow the distance by half until they converge
#: quadratically, which 20 do for a million arms.
_STEPS = 20


def tsallis_inf(losses: np.ndarray, rate: float) -> np.ndarray:
    """Probabilities `p_i = 4 / (rate (losses_i - x))²` of the arms, with `x` such that they add up.

    They minimise `Σ p_i losses_i - (4 / rate) Σ sqrt(p_i)` over the simplex. Adding a constant to
    all losses changes nothing.

    **Arguments:**

    - `losses`: sums of the estimated losses of each arm so far, shape `(arms,)`, of the order of
      one for a round.
    - `rate`: the learning rate, `2 / sqrt(t)` in round `t`.

    **Returns:** an array of the shape of `losses`.
    """
    above = losses - losses.min()
    # From the left of the root, where the sum is at least one, Newton comes without overshooting.
    x = -2 / rate
    for _ in range(_STEPS):
        weights = 4 / (rate * (above - x)) ** 2
        x = x - (weights.sum() - 1) / (rate * (weights**1.5).sum())
    weights = 4 / (rate * (above - x)) ** 2
    return weights / weights.sum()


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
