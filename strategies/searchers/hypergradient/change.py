"""The mover that changes what has no gradient, around the incumbent."""

from functools import partial
from typing import Any

from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.view import Offer, View
from strategies.searchers.mutation import perturbed


def change(view: View, least: float) -> list[Offer]:
    """A change of each hyperparameter by itself, and of two.

    Nothing is known of a change beforehand but how much values differ, and what changes of the
    hyperparameter have been worth.
    """
    base = view.best.best
    if not view.best.where.any():
        return []
    searched = [
        path
        for path, where in view.space.slices.items()
        if base.active[where].any() and not view.graded[where].all()
    ]
    sets = [(path,) for path in searched]
    if len(searched) > 1:
        sets.append(tuple(view.rng.choice(searched, 2, replace=False)))
    offers = []
    for paths in sets:
        way = f"change, {paths[0]}" if len(paths) == 1 else "change, two"
        move = Move(
            "change",
            view.number,
            way=way,
            level=view.level,
            base=base.name,
            parent=view.best.name,
        )
        make = partial(_changed, view, paths)
        record = view.record(way)
        offers.append(Offer(move, -view.promised(way), view.spread, make, record=record))
    return offers


def _changed(view: View, paths: tuple[str, ...]) -> dict[str, Any] | None:
    """The incumbent with other values of these; `None` if all near it was tried."""
    base, fixed = view.best.best, ~view.graded
    seen = {unit[fixed].tobytes() for unit in view.places}
    for _ in range(CONSTANTS.attempts):
        unit = base.unit.copy()
        for path in paths:
            where = view.space.slices[path]
            unit[where] = perturbed(view.rng, view.space.domains[path], unit[where])
        if unit[fixed].tobytes() in seen:
            continue
        config = view.space.decode(unit)
        if view.space.encode(config)[fixed].tobytes() not in seen:
            return config
    return None
