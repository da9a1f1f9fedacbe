"""The mover that starts somewhere else."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.points import Point
from strategies.searchers.hypergradient.view import Offer, View
from strategies.space import SearchSpace
from strategies.surrogates.acquisition import expected_improvement
from strategies.surrogates.gaussian_process import GaussianProcess, Rows, fit


def restart(view: View, least: float) -> list[Offer]:
    """Where a Gaussian process expects most; in many dimensions, places of several kinds.

    Nothing is known of those but what has been gained lately, and what the kind has been worth. A
    start is measured by where the best chain is expected to end, and takes as many evaluations as
    that one has.
    """
    best = view.best
    if not best.where.any():
        return []
    size = int(best.where.sum())
    alike = [
        point
        for point in view.known
        if np.array_equal(point.unit[~view.graded], best.best.unit[~view.graded])
    ]
    if size <= CONSTANTS.surrogate_size:
        if len(alike) < CONSTANTS.surrogate_least:
            return []
        offer = _by_process(view, sorted(alike, key=lambda point: point.value), least)
        return [] if offer is None else [offer]
    return [
        Offer(
            Move("start", view.number, way=way, level=view.level, parent=view.best.name),
            -view.ahead - view.promised(way),
            view.spread,
            make,
            len(best.points),
            record=view.record(way),
        )
        for way, make in _ways(view)
    ]


def _ways(view: View) -> Iterator[tuple[str, Any]]:
    def far() -> dict[str, Any]:
        return farthest(view.space, view.rng, view.places)

    def shared() -> dict[str, Any]:
        """Each array at one level: penalties of features want to be right together first."""
        unit = view.best.best.unit.copy()
        for where in view.space.slices.values():
            if view.best.where[where].all():
                unit[where] = view.rng.random()
        return view.space.decode(unit)

    def hop() -> dict[str, Any]:
        unit, where = view.best.best.unit.copy(), np.flatnonzero(view.best.where)
        some = where[view.rng.random(len(where)) < view.rng.random()]
        unit[some] = view.rng.random(len(some))
        return view.space.decode(unit)

    yield "restart, far", far
    yield "restart, shared", shared
    yield "restart, hop", hop


def farthest(
    space: SearchSpace, rng: np.random.Generator, places: Sequence[np.ndarray] | np.ndarray
) -> dict[str, Any]:
    """The draw that is farthest from all that was tried."""
    draws = [space.sample(rng) for _ in range(CONSTANTS.draws)]
    if not len(places):
        return draws[0]
    others = np.asarray(places)
    away = [np.min(np.sum((others - space.encode(config)) ** 2, axis=1)) for config in draws]
    return draws[int(np.argmax(away))]


def _by_process(view: View, alike: list[Point], least: float) -> Offer | None:
    """Over what has gradients, at the best chain's other values."""
    way, best, where = "restart, process", view.best.best, view.best.where
    alike, size = alike[: CONSTANTS.surrogate_points], int(where.sum())
    values = np.array([point.value for point in alike])
    roof = values[0] + CONSTANTS.roof * view.spread
    scale = max(float(np.std(np.minimum(values, roof))), 1e-300)
    record = view.record(way)
    move = Move("start", view.number, way=way, level=view.level, parent=view.best.name)
    cost = len(view.best.points)
    hoped = Offer(move, -view.ahead, scale, dict, cost, record)
    if hoped.worth < least:
        return None  # a place that is as uncertain as the values differ would not be worth it
    process = _process(alike, where, values, roof, scale)
    # A valley is often left by moving in some coordinates only.
    count = 2 * CONSTANTS.candidates // 3
    share = view.rng.choice([0.1, 0.3, 0.6], (count, 1)) + 0.5 / size
    some = view.rng.random((count, size)) < share
    hops = np.where(some, view.rng.random((count, size)), best.unit[where])
    candidates = np.concatenate([view.rng.random((CONSTANTS.candidates - count, size)), hops])
    away = np.abs(candidates[:, None] - view.places[None, :, where]).max(axis=2).min(axis=1)
    candidates = candidates[away >= min(CONSTANTS.apart, float(np.sort(away)[-5]))]
    mean, deviation = process.predict(candidates)
    gains = (values[0] - np.median(values)) / scale - mean
    chosen = int(np.argmax(expected_improvement(-gains, deviation, 0.0)))
    unit = best.unit.copy()
    unit[where] = candidates[chosen]
    return Offer(
        move,
        float(gains[chosen]) * scale - view.ahead - view.promised(way),
        float(deviation[chosen]) * scale,
        partial(view.space.decode, unit),
        cost,
        record,
    )


def _process(
    alike: list[Point], where: np.ndarray, values: np.ndarray, roof: float, scale: float
) -> GaussianProcess:
    """On values, bounded above, and as many derivatives as there is room for."""
    size = int(where.sum())
    rows = Rows.values(np.array([point.unit[where] for point in alike]))
    targets = np.minimum(values, roof) - np.median(values)
    room = CONSTANTS.surrogate_rows - len(alike)
    for point in alike:
        slope = point.gradient[where]
        if point.value >= roof or not np.isfinite(slope).all() or room < 1:
            continue
        if room >= size * 2:
            directions = np.eye(size)
        elif slope.any():
            directions = (slope / np.linalg.norm(slope))[None]
        else:
            continue
        noise = np.full(len(directions), point.error * float(np.linalg.norm(slope)) / scale)
        rows = rows.join(Rows(np.repeat(point.unit[where][None], len(directions), 0), directions,
                              noise))  # fmt: skip
        targets = np.append(targets, directions @ slope)
        room -= len(directions)
    return fit(rows, targets / scale, np.zeros(size, int), iterations=6)
