"""Local search along hypergradients, many chains at once, with discrete search around it.

Each mover offers a place, what it expects to gain below the incumbent, and how sure it is. Offers
are compared by the expected improvement for one evaluation, times what the mover's recent moves
have achieved of what they promised. The largest is taken.

A *chain* descends from one starting point by a bounded quasi-Newton method in the unit coordinates,
where log domains are affine and every bound is 0 or 1 (`strategies.surrogates.quasi_newton`). A
chain that has converged promises nothing, so that something else is chosen: a start elsewhere, a
change of what has no gradient, or, where the gradients say that the objective is a sum of functions
of one coordinate each, the minimum of that sum (`strategies.surrogates.additive`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from strategies.arguments import integer, positive
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.searchers.bayes import BayesSearcher
from strategies.searchers.hypergradient.additive import additive
from strategies.searchers.hypergradient.chains import chains
from strategies.searchers.hypergradient.change import change
from strategies.searchers.hypergradient.descent import descent
from strategies.searchers.hypergradient.model import model
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.points import (
    informative,
    point_of,
    smooth,
    trusted,
)
from strategies.searchers.hypergradient.restart import farthest, restart
from strategies.searchers.hypergradient.view import Mover, Offer, View
from strategies.space import SearchSpace
from strategies.surrogates.lagrangian import has_all_slopes, lagrangian

# In this order, as the later ones need not compute what cannot win any more.
_MOVERS: tuple[Mover, ...] = (descent, change, model, additive, restart)


class HypergradientSearcher(Searcher):
    """Multi-start bounded quasi-Newton for what has a gradient, search around it for what has none.

    Works with partial, noisy or missing gradients, any number of pending suggestions, and
    observations in any order. Gradients whose reported relative error is 1 or more are ignored;
    smaller errors shorten the steps and drop curvature that they could have caused. Where the
    gradients seen do not predict the values seen, they are ignored altogether. Where the best
    configuration has none to follow, a Gaussian process decides (`BayesSearcher`).

    Constraints that come with gradients are folded into the objective, as an augmented Lagrangian
    (`strategies.surrogates.lagrangian`). Where one that is violated has none, `BayesSearcher`
    decides, too.

    **Arguments:**

    - `space`, `seed`, `first`: see `Searcher`.
    - `radius`: longest first step of a chain, in units of the box's side.
    - `memory`: number of gradient differences kept by a chain.

    `suggestion.note["move"]` says what a suggestion is: `"start"` (a new place), `"step"` (a
    quasi-Newton step of a chain), `"change"` (the incumbent, changed in what has no gradient) or
    `"model"` (the Gaussian process's choice).
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        radius: float = 0.15,
        memory: int = 50,
    ):
        super().__init__(space, seed=seed, first=first)
        self.radius = float(positive("radius", radius, 1.0))
        self.memory = integer("memory", memory, 1)

    def seen(self, history: Sequence[Observation]) -> Sequence[Observation]:
        """The history itself: constraints are walked along, or modelled."""
        return history

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        if not has_all_slopes(history):
            model = BayesSearcher(self.space, seed=self.seed)
            config = model.propose(number, history, pending).config
            return Suggestion(number, config, Move("model", number, way="model").note())
        points = smooth([point_of(item) for item in lagrangian(history)])
        known = [point for point in points if np.isfinite(point.value)]
        waiting = [move for item in pending if (move := Move.of(item.note)) is not None]
        units = [point.unit for point in points]
        units += [item.unit for item in pending]
        begun = any(point.move and point.move.move == "start" for point in points)
        begun = begun or any(move.move == "start" for move in waiting)
        if not known:
            # A trial that tuned itself reports another place, yet the default has been its start.
            config = self.space.default()
            if begun or config in self.first:
                config = farthest(self.space, self.rng(number), units)
            return Suggestion(number, config, Move("start", number).note())
        seen = informative(self.space, known)
        graded = seen & trusted(known)
        view = View(
            self.space,
            self.seed,
            number,
            self.rng(number),
            history,
            pending,
            known,
            np.array(units),
            waiting,
            seen,
            graded,
            chains(points, graded, self.radius, self.memory),
        )
        return self._chosen(view)

    @staticmethod
    def _chosen(view: View) -> Suggestion:
        """The offer that is worth most, among those of places not tried yet."""
        offers: list[Offer] = []
        for mover in _MOVERS:
            offers += mover(view, max((offer.worth for offer in offers), default=0.0))
        for offer in sorted(offers, key=lambda offer: (-offer.worth, -offer.promise)):
            config = offer.make()
            if config is not None and view.space.encode(config).tobytes() not in view.tried:
                return offer.accepted(view.number, config)
        config = farthest(view.space, view.rng, view.places)
        return Suggestion(view.number, config, Move("start", view.number).note())
