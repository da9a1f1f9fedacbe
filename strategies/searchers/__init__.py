"""Searchers propose configurations; each is a pure function of its history."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.searchers.base import Searcher
    from strategies.searchers.hypergradient import HypergradientSearcher
    from strategies.searchers.random import RandomSearcher

__all__ = ["HypergradientSearcher", "RandomSearcher", "Searcher"]

# Imported on first use, so that a searcher's own dependencies load only where it is chosen.
_HOMES = {
    "HypergradientSearcher": "hypergradient",
    "RandomSearcher": "random",
    "Searcher": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
