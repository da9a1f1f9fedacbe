"""Search from a static log, with no further evaluations: what an old study recommends.

An ensemble of small networks is fitted to the log, and the configurations with the best cautious
predictions (mean plus a multiple of the members' disagreement) are proposed. A surrogate that is
maximised is maximised where it is wrong: away from the log. So its weights may be kept where the
prediction is flat in them, too: the norm of the derivative of the mean prediction by the weights,
which bounds how far predictions move under a perturbation of the weights of a given length, as a
penalty (Dao, Nguyen, Truong & Hoang, "Incorporating surrogate gradient norm to improve offline
optimization techniques", NeurIPS 2024). On twelve tables of trained networks it made the proposals
worse (`python -m experiments.offline`), so that it is left out unless it is asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.arguments import integer, nonnegative
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.candidates import neighbours
from strategies.surrogates.network import Network, adam
from strategies.surrogates.outputs import imputed, logarithmic
from strategies.surrogates.startup import sobol_point

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Complete observations below which there is nothing to learn from.
_LEAST = 10
#: Units of the two hidden layers, steps and rate of the training, points in each step.
_UNITS, _TRAINING, _RATE, _BATCH = 32, 600, 1e-2, 128
#: Length of the step in the weights by which the penalty's derivative is found.
_PROBE = 0.05
_DECAY = 1e-4
#: Random points, rounds of the local search, places it goes on from, and how many are kept.
_POOL, _ROUNDS, _ELITE, _KEPT = 2000, 6, 48, 512
#: Bound of the points around the elite that a round looks at.
_AROUND = 4000


@dataclass(frozen=True)
class _Fitted:
    """What was made of a log: places to try in their order, best first, and their scores."""

    log: tuple[tuple[int, float], ...]
    units: Matrix
    scores: Vector


class OfflineSearcher(Searcher):
    """Proposes configurations from a log of earlier trials, in the order of their promise.

    The log is the history: what a ledger was given (`Ledger.warm_start`) or told. As long as
    nothing new is told, all suggestions come from one fit, each the next best; with new results it
    is fitted again. Constraints are ranked, failed trials count as the worst. A ledger that knows
    fewer than 10 results that have not failed gets points of a Sobol sequence, whose note says
    `"startup"` and why; `proposals` refuses so short a log.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `members`: networks of the ensemble.
    - `sharpness`: weight of the penalty on the norm of the derivative of the mean prediction by the
      weights; the log's values have unit spread. Default: none.
    - `caution`: standard deviations of the ensemble that are added to a prediction.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        members: int = 5,
        sharpness: float = 0.0,
        caution: float = 1.0,
    ):
        super().__init__(space, seed=seed, first=first)
        self.members = integer("members", members, 2)
        self.sharpness = nonnegative("sharpness", sharpness)
        self.caution = nonnegative("caution", caution)
        self._fitted: _Fitted | None = None

    def proposals(self, log: Iterable[Observation], count: int = 32) -> list[dict[str, Any]]:
        """So many configurations, the most promising first, none of them of the log.

        **Arguments:**

        - `log`: observations, values to be minimised; at least 10 that have not failed.

        **Raises:** `ValueError` for a log that is too short to learn from.
        """
        count, log = integer("count", count, 1), list(log)
        usable = _usable(log)
        if usable < _LEAST:
            raise ValueError(
                f"'log': expected at least {_LEAST} usable observations, received {usable}"
            )
        taken: list[Suggestion] = []
        for number in range(len(self.first), len(self.first) + count):
            taken.append(self.propose(number, log, taken))
        return [suggestion.config for suggestion in taken]

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        usable = _usable(history)
        if usable < _LEAST:
            config = self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))
            why = f"the log has {usable} usable results, {_LEAST} are needed"
            return Suggestion(number, config, {"origin": "startup", "why": why})
        fitted = self._fit(history)
        tried = {_key(item.unit) for item in [*history, *pending]}
        for unit, score in zip(fitted.units, fitted.scores, strict=True):
            if _key(unit) not in tried:
                note = {"origin": "model", "predicted": float(score)}
                return Suggestion(number, self.space.decode(unit), note)
        return Suggestion(number, self.space.sample(self.rng(number)), {"origin": "draw"})

    def _fit(self, history: Sequence[Observation]) -> _Fitted:
        """The last fit, if it was of the same log."""
        values = [
            np.nan if item.status == "failed" or item.value is None else item.value
            for item in history
        ]
        log = tuple(
            (hash(_key(item.unit)), value)
            for item, value in zip(history, np.nan_to_num(values, nan=np.inf), strict=True)
        )
        if self._fitted is None or self._fitted.log != log:
            units = np.stack([item.unit for item in history])
            target, _ = logarithmic(imputed(np.array(values, float)))
            self._fitted = _Fitted(log, *self._places(units, target))
        return self._fitted

    def _places(self, units: Matrix, target: Vector) -> tuple[Matrix, Vector]:
        rng = np.random.default_rng([self.seed, len(units)])
        network = Network((units.shape[1], _UNITS, _UNITS, 1))
        weights = self._trained(network, units, target, rng)

        def score(places: Matrix) -> Vector:
            found = network.values(weights, places - 0.5)
            return np.asarray(found.mean(axis=0) + self.caution * found.std(axis=0))

        draws = [self.space.encode(self.space.sample(rng)) for _ in range(_POOL // 4)]
        pool = self.space.snap(rng.random((_POOL, self.space.dimension)))
        best = units[np.argsort(target, kind="stable")[:_ELITE]]
        kept = np.concatenate([np.stack(draws), pool, best])
        scores = score(kept)
        for _ in range(_ROUNDS):
            elite = kept[np.argsort(scores, kind="stable")[:_ELITE]]
            near = np.concatenate([neighbours(self.space, place, rng) for place in elite])
            if len(near) > _AROUND:
                near = near[rng.choice(len(near), _AROUND, replace=False)]
            kept = np.unique(np.concatenate([kept, near]), axis=0)
            scores = score(kept)
            order = np.argsort(scores, kind="stable")[: 4 * _KEPT]
            kept, scores = kept[order], scores[order]
        known = {_key(unit) for unit in units}
        new = [i for i in range(len(kept)) if _key(kept[i]) not in known][:_KEPT]
        return kept[new], scores[new]

    def _trained(
        self, network: Network, units: Matrix, target: Vector, rng: np.random.Generator
    ) -> Matrix:
        """The ensemble: other weights to begin with, and other batches, for each member."""
        x, size = units - 0.5, min(_BATCH, len(units))

        def slope(w: Matrix, step: int) -> Matrix:
            rows = rng.integers(len(x), size=(self.members, size))
            batch, wanted = x[rows], target[rows]
            g = network.pulled_back(w, batch, lambda out: 2.0 * (out - wanted) / size)
            if self.sharpness:
                g = g + self.sharpness * _of_norm(network, w, batch)
            return g + _DECAY * w

        return adam(network.begin(rng, self.members), slope, _TRAINING, _RATE)


def _of_norm(network: Network, w: Matrix, batch: Matrix) -> Matrix:
    """Derivative by the weights of the norm of the mean prediction's derivative by the weights.

    It is the second derivative times the first one's direction, a difference of first derivatives.
    """

    def mean(out: Matrix) -> Matrix:
        return np.full_like(out, 1.0 / out.shape[1])

    g = network.pulled_back(w, batch, mean)
    direction = g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12)
    further = network.pulled_back(w + _PROBE * direction, batch, mean)
    return (further - g) / _PROBE


def _usable(log: Sequence[Observation]) -> int:
    return sum(item.status != "failed" for item in log)


def _key(unit: Vector) -> bytes:
    # Adding zero turns -0.0 into 0.0, whose bytes differ.
    return (np.round(unit, 9) + 0.0).tobytes()
