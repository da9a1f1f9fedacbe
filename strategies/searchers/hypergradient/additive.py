"""The mover that jumps to the minimum of a sum of functions of one coordinate each."""

from functools import partial

import numpy as np

from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.points import Point
from strategies.searchers.hypergradient.view import Offer, View
from strategies.surrogates.acquisition import expected_improvement
from strategies.surrogates.additive import AdditiveSurrogate, choose, fit_additive


def additive(view: View, least: float) -> list[Offer]:
    """The minimum of the sum's mean, that of a lower bound, and every coordinate's own best chance.

    The last is not for its value: a gradient tells of all coordinates at once, so that each can be
    searched where it is least known, whatever the others do. What is promised is bounded by how far
    the median of the values lies above the best: what was gained lately says nothing of a sum's
    other valleys, yet no sum is so sure that it may promise more than values have been seen to
    differ.
    """
    best = view.best.best
    # Gradients that do not predict a step may still be those of ripples.
    where = np.isfinite(best.gradient) & view.informative
    fixed = best.unit[~view.informative]
    alike = [
        point
        for point in view.known
        if np.isfinite(point.gradient[where]).all()
        and np.array_equal(point.unit[~view.informative], fixed)
    ]
    size = int(where.sum())
    if not 0 < size <= CONSTANTS.additive_size or len(alike) < CONSTANTS.additive_least:
        return []
    # What the sum is made of is asked anew whenever there are a quarter more points.
    deciding = alike[: CONSTANTS.checkpoint(len(alike))]
    choice = choose(*_arrays(deciding, where))
    room = min(CONSTANTS.additive_points, CONSTANTS.additive_derivatives // size)
    if len(alike) > room:
        lowest = sorted(alike, key=lambda point: point.value)[: room // 2]
        names = {point.name for point in [*lowest, *alike[-(room // 2) :]]}
        alike = [point for point in alike if point.name in names]
    x, gradients, errors = _arrays(alike, where)
    values = np.array([point.value for point in alike])
    base = next(i for i, point in enumerate(alike) if point is best)
    surrogate = fit_additive(x, values, gradients, errors, base, choice)
    if surrogate is None or surrogate.surprise > CONSTANTS.surprise:
        return []
    means, deviations = surrogate.mean, np.maximum(surrogate.deviation, 1e-300)
    hopes = expected_improvement(means, deviations, means.min(axis=0))
    ways = {"additive, apart": np.argmax(hopes, axis=0)}
    for bold in CONSTANTS.boldness:
        ways[f"additive, {bold}"] = np.argmin(means - bold * deviations, axis=0)
    return [_offer(view, where, surrogate, way, rows) for way, rows in ways.items()]


def _arrays(points: list[Point], where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, gradients and their errors."""
    return (
        np.array([point.unit[where] for point in points]),
        np.array([point.gradient[where] for point in points]),
        np.array([point.error for point in points], float),
    )


def _offer(
    view: View, where: np.ndarray, surrogate: AdditiveSurrogate, way: str, rows: np.ndarray
) -> Offer:
    columns = np.arange(surrogate.mean.shape[1])
    gain = -float(surrogate.mean[rows, columns].sum())
    deviation = float(np.linalg.norm(surrogate.deviation[rows, columns]))
    unit = view.best.best.unit.copy()
    unit[where] = surrogate.places[rows, columns]
    move = Move("start", view.number, way=way, level=view.level, parent=view.best.name)
    return Offer(
        move,
        gain - view.promised(way),
        deviation,
        partial(view.space.decode, unit),
        record=view.record(way),
        most=view.above,
    )
