"""Search with a linear model of n-grams of decisions (Negrinho & Gordon 2017)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from strategies.arguments import integer, positive
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.searchers.decisions import Decisions
from strategies.searchers.tree_search import located, ranked
from strategies.space import SearchSpace

_DEPTH = "depth"


class NGramSearcher(Searcher):
    """Surrogate-based search on n-grams of decisions.

    A configuration is the sentence of its decisions, in order; ridge regression of the share of
    trials that it is better than, on how often each n-gram occurs in it and on the length of the
    sentence, scores configurations that were never tried. The best of some random ones is
    suggested, or now and then any. Neither scale nor smoothness of the objective matter, and the
    model is at home in spaces in which no two configurations have the same hyperparameters.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `longest`: words of an n-gram at most.
    - `candidates`: random configurations that are scored for each suggestion.
    - `chance`: probability that a random configuration is suggested, in (0, 1].
    - `penalty`: of the ridge regression. With the 1,000 of the paper's experiments the model is
      close to a count of what the good ones have in common; on eleven of twelve tables 1 did as
      well or better.
    - `cells`: as in `TreeSearcher`; a word is a path and one of its cells.

    **Raises:** `ValueError` naming an argument that is out of range.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        longest: int = 5,
        candidates: int = 50,
        chance: float = 0.25,
        penalty: float = 1.0,
        cells: int = 8,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
    ):
        super().__init__(space, seed=seed, first=first)
        self.longest = integer("longest", longest, 1)
        self.candidates = integer("candidates", candidates, 2)
        self.chance = positive("chance", chance, 1.0)
        self.penalty = positive("penalty", penalty)
        self.cells = integer("cells", cells, 2)
        self._decisions = Decisions(self.space, self.cells, bisection=False)

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        rng = self.rng(number)
        if len(history) < 2 or rng.random() < self.chance:
            return Suggestion(number, self.space.sample(rng), {"origin": "draw"})
        # What is pending counts as average, so that the same place is less attractive.
        tried = [self._grams(located(item)) for item in (*history, *pending)]
        rewards = np.r_[ranked(history), np.full(len(pending), 0.5)]
        columns = {gram: at for at, gram in enumerate(sorted(set().union(*tried)))}
        rows = _counts(tried, columns)
        configs = [self.space.sample(rng) for _ in range(self.candidates)]
        new = _counts([self._grams(self.space.flatten(c)) for c in configs], columns)
        # The dual form, centred: as many unknowns as trials, however many n-grams there are.
        inner, across = (rows @ rows.T).toarray(), (new @ rows.T).toarray()
        means = inner.mean(axis=0)
        centred = inner - means - means[:, None] + means.mean()
        across += means.mean() - means - across.mean(axis=1, keepdims=True)
        matrix = centred + self.penalty * np.eye(len(tried))
        scores = across @ np.linalg.solve(matrix, rewards - rewards.mean())
        return Suggestion(number, configs[int(np.argmax(scores))], {"origin": "model"})

    def _grams(self, flat: Mapping[str, Any]) -> Counter[tuple[str, ...]]:
        """How often each n-gram occurs, and the number of decisions."""
        moves = self._decisions.moves(flat)
        words = [f"{path}[{coordinate}]={first}" for path, coordinate, first, _ in moves]
        found = Counter(
            tuple(words[at : at + length])
            for length in range(1, self.longest + 1)
            for at in range(len(words) - length + 1)
        )
        found[(_DEPTH,)] = len(words)
        return found


def _counts(
    sentences: Sequence[Counter[tuple[str, ...]]], columns: Mapping[tuple[str, ...], int]
) -> Any:
    """A sparse row for each sentence; n-grams that no trial has say nothing."""
    entries = [
        (count, row, columns[gram])
        for row, sentence in enumerate(sentences)
        for gram, count in sentence.items()
        if gram in columns
    ]
    counts, *at = zip(*entries, strict=True)
    return csr_array((counts, tuple(at)), shape=(len(sentences), len(columns)), dtype=float)
