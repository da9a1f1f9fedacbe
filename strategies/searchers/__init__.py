"""Searchers propose configurations; each is a pure function of its history."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.searchers.auto import AutoSearcher
    from strategies.searchers.base import Searcher
    from strategies.searchers.bayes import BayesSearcher
    from strategies.searchers.carbs import CARBSSearcher
    from strategies.searchers.cmaes import CMAESSearcher
    from strategies.searchers.evolution import EvolutionSearcher
    from strategies.searchers.grid import GridSearcher
    from strategies.searchers.hypergradient import HypergradientSearcher
    from strategies.searchers.multi_objective import MultiObjectiveSearcher
    from strategies.searchers.ngrams import NGramSearcher
    from strategies.searchers.offline import OfflineSearcher
    from strategies.searchers.parametric import ParametricSearcher
    from strategies.searchers.pareto import ParetoSearcher
    from strategies.searchers.random import RandomSearcher
    from strategies.searchers.sobol import SobolSearcher
    from strategies.searchers.tpe import TPESearcher
    from strategies.searchers.tree_search import TreeSearcher

__all__ = [
    "AutoSearcher",
    "BayesSearcher",
    "CARBSSearcher",
    "CMAESSearcher",
    "EvolutionSearcher",
    "GridSearcher",
    "HypergradientSearcher",
    "MultiObjectiveSearcher",
    "NGramSearcher",
    "OfflineSearcher",
    "ParametricSearcher",
    "ParetoSearcher",
    "RandomSearcher",
    "Searcher",
    "SobolSearcher",
    "TPESearcher",
    "TreeSearcher",
]

# Imported on first use, so that a searcher's own dependencies load only where it is chosen.
_HOMES = {
    "AutoSearcher": "auto",
    "BayesSearcher": "bayes",
    "CARBSSearcher": "carbs",
    "CMAESSearcher": "cmaes",
    "EvolutionSearcher": "evolution",
    "GridSearcher": "grid",
    "HypergradientSearcher": "hypergradient",
    "MultiObjectiveSearcher": "multi_objective",
    "NGramSearcher": "ngrams",
    "OfflineSearcher": "offline",
    "ParametricSearcher": "parametric",
    "ParetoSearcher": "pareto",
    "RandomSearcher": "random",
    "Searcher": "base",
    "SobolSearcher": "sobol",
    "TPESearcher": "tpe",
    "TreeSearcher": "tree_search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
