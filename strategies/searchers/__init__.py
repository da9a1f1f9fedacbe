"""Searchers propose configurations; each is a pure function of its history."""

from strategies.lazy import attach_stub

# A searcher's own dependencies load only where it is chosen.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
