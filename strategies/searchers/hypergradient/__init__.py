"""Search along hypergradients: movers that offer places, and the rule that chooses among them."""

from strategies.searchers.hypergradient.searcher import HypergradientSearcher

__all__ = ["HypergradientSearcher"]
