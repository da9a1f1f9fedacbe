"""Random search (Bergstra and Bengio, JMLR 2012): the baseline that every searcher must beat."""

from collections.abc import Sequence

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher


class RandomSearcher(Searcher):
    """Independent draws from the space's prior; suggestion `n` depends on the seed and `n` only."""

    several_objectives = True

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        return Suggestion(number, self.space.sample(self.rng(number)))
