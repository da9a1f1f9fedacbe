"""The search layer: one space, one searcher, three engines."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.observation import Observation, Report, Suggestion, report
    from strategies.searchers import HypergradientSearcher, RandomSearcher, Searcher
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

__all__ = [
    "Categorical",
    "Choice",
    "Constant",
    "Float",
    "HypergradientSearcher",
    "Int",
    "Observation",
    "Ordered",
    "Ordinal",
    "RandomSearcher",
    "Report",
    "SearchSpace",
    "Searcher",
    "Simplex",
    "Suggestion",
    "report",
]

# Imported on first use: `import strategies` loads no engine and no searcher.
_HOMES = {
    "observation": ["Observation", "Report", "Suggestion", "report"],
    "searchers": ["HypergradientSearcher", "RandomSearcher", "Searcher"],
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
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
