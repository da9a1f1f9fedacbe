"""The search layer: one space, one searcher, three engines."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.ledger import Ledger
    from strategies.observation import Observation, Report, Suggestion, report
    from strategies.searchers import (
        AutoSearcher,
        BayesSearcher,
        CARBSSearcher,
        CMAESSearcher,
        EvolutionSearcher,
        GridSearcher,
        HypergradientSearcher,
        MultiObjectiveSearcher,
        NGramSearcher,
        OfflineSearcher,
        ParametricSearcher,
        ParetoSearcher,
        RandomSearcher,
        Searcher,
        SobolSearcher,
        TPESearcher,
        TreeSearcher,
    )
    from strategies.space import (
        Categorical,
        Choice,
        Constant,
        Float,
        Int,
        Ordered,
        Ordinal,
        SearchSpace,
        Simplex,
    )
    from strategies.stopping import Stop

__all__ = [
    "AutoSearcher",
    "BayesSearcher",
    "CARBSSearcher",
    "CMAESSearcher",
    "Categorical",
    "Choice",
    "Constant",
    "EvolutionSearcher",
    "Float",
    "GridSearcher",
    "HypergradientSearcher",
    "Int",
    "Ledger",
    "MultiObjectiveSearcher",
    "NGramSearcher",
    "Observation",
    "OfflineSearcher",
    "Ordered",
    "Ordinal",
    "ParametricSearcher",
    "ParetoSearcher",
    "RandomSearcher",
    "Report",
    "SearchSpace",
    "Searcher",
    "Simplex",
    "SobolSearcher",
    "Stop",
    "Suggestion",
    "TPESearcher",
    "TreeSearcher",
    "report",
]

# Imported on first use: `import strategies` loads no engine and no searcher.
_HOMES = {
    "ledger": ["Ledger"],
    "observation": ["Observation", "Report", "Suggestion", "report"],
    "searchers": [
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
    ],
    "space": [
        "Categorical",
        "Choice",
        "Constant",
        "Float",
        "Int",
        "Ordered",
        "Ordinal",
        "SearchSpace",
        "Simplex",
    ],
    "stopping": ["Stop"],
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
