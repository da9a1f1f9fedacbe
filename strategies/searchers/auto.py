"""The searcher that fits what has been seen so far."""

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace

#: Beyond so many complete trials the process of `BayesSearcher` leaves some of them out, and takes
#: half a second for a suggestion; a distribution that has learned its shape takes milliseconds.
#: Before, the process finds more with as many trials, in 50 dimensions too.
_MANY = 600


class AutoSearcher(Searcher):
    """Chooses a searcher for each suggestion, and says in its note which and why.

    | seen | searcher |
    | --- | --- |
    | nothing yet | `HypergradientSearcher`, which begins at the defaults |
    | usable gradients: at least one with a reported error below 1 | `HypergradientSearcher` |
    | no gradients; up to 600 complete trials | `BayesSearcher` |
    | no gradients; more trials | `CMAESSearcher`, or `EvolutionSearcher` without `cmaes` |

    Points that the search was given (`Ledger.warm_start`) are no trials. The choice depends on the
    history only (and on whether `cmaes` is installed), so that a search is reproduced and restored
    as with any one of them. `suggestion.note["searcher"]` is the name, `suggestion.note["why"]` the
    reason. It goes on with a state that one of these has saved.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher; the seed is that of all of them.
    """

    # Those that it chooses from: they go by what was observed, whoever suggested it.
    continues = (
        "HypergradientSearcher",
        "BayesSearcher",
        "CMAESSearcher",
        "EvolutionSearcher",
    )

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, first: Iterable[Mapping[str, Any]] = ()
    ):
        super().__init__(space, seed=seed, first=first)
        self._made: dict[str, Searcher] = {}
        self._last = "CMAESSearcher" if importlib.util.find_spec("cmaes") else "EvolutionSearcher"

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        name, why = self._choice(history)
        searcher = self._searcher(name)
        suggestion = searcher._propose(number, searcher.seen(history), pending)
        return replace(suggestion, note={**suggestion.note, "searcher": name, "why": why})

    def seen(self, history: Sequence[Observation]) -> Sequence[Observation]:
        """The history itself: the searcher that is chosen sees it in its own way."""
        return history

    def _choice(self, history: Sequence[Observation]) -> tuple[str, str]:
        complete = [item for item in history if item.status == "complete"]
        if not complete:
            return "HypergradientSearcher", "nothing is known yet"
        if any(map(_usable, complete)):
            return "HypergradientSearcher", "trials report gradients"
        if sum(item.number is not None for item in complete) > _MANY:
            return self._last, f"no gradients, and more than {_MANY} trials"
        return "BayesSearcher", f"no gradients, and up to {_MANY} trials"

    def _searcher(self, name: str) -> Searcher:
        if name not in self._made:
            kind = getattr(importlib.import_module("strategies.searchers"), name)
            self._made[name] = kind(self.space, seed=self.seed)
        return self._made[name]


def _usable(item: Observation) -> bool:
    error = item.gradient_error
    return item.slope is not None and (error is None or error < 1)
