"""The mover for incumbents without a gradient: a Gaussian process over the whole space."""

from typing import Any

from strategies.searchers.bayes import BayesSearcher
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.view import Offer, View


def model(view: View, least: float) -> list[Offer]:
    """What `BayesSearcher` suggests, from the first trials on."""
    if view.best.where.any():
        return []

    def make() -> dict[str, Any]:
        searcher = BayesSearcher(view.space, seed=view.seed, gradients=bool(view.graded.any()))
        return searcher.propose(view.number, view.history, view.pending).config

    move = Move("model", view.number, way="model", level=view.level)
    return [Offer(move, 0.0, view.spread, make)]
