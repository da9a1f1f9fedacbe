"""Quasi-random search: a scrambled Sobol sequence (Owen 1998) through the space's prior."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.stats import qmc

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.surrogates.startup import sobol_point


class SobolSearcher(Searcher):
    """Evenly spread draws from the prior; suggestion `n` depends on the seed and `n` only.

    Any power of two of consecutive suggestions, from 0 on, is balanced in every hyperparameter and
    far better spread over pairs of them than independent draws. Under constraints by predicate the
    points that break one are replaced by independent draws.

    **Raises:** `ValueError` if the space needs more than 21201 variates, the sequence's limit.
    """

    several_objectives = True

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, first: Iterable[Mapping[str, Any]] = ()
    ):
        super().__init__(space, seed=seed, first=first)
        if self.space.uniforms > qmc.Sobol.MAXDIM:
            raise ValueError(
                f"'space': expected at most {qmc.Sobol.MAXDIM} uniform variates, "
                f"received {self.space.uniforms}"
            )

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        config = self.space.from_uniform(sobol_point(self.space.uniforms, self.seed, number))
        if not self.space.feasible(config):
            config = self.space.sample(self.rng(number))
        return Suggestion(number, config)
