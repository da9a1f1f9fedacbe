"""The mover that starts somewhere else."""

import functools
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
        offer = _by_process(view, alike, least)
        return [] if offer is None else [offer]
    return [
        Offer(
            Move("start", view.number, way=way, level=view.level, parent=view.best.name),
            -view.ahead - view.promised(way),
            view.spread,
            make,
            len(best.points),
            record=view.record(way),
            most=view.spread,
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
    """Over what has gradients, at the best chain's other values; `alike` by number."""
    way, best, where = "restart, process", view.best.best, view.best.where
    lowest = sorted(alike, key=lambda point: point.value)[: CONSTANTS.surrogate_points]
    values = np.array([point.value for point in lowest])
    roof = values[0] + CONSTANTS.roof * view.spread
    scale = max(float(np.std(np.minimum(values, roof))), 1e-300)
    record = view.record(way)
    move = Move("start", view.number, way=way, level=view.level, parent=view.best.name)
    cost = len(view.best.points)
    hoped = Offer(move, -view.ahead, scale, dict, cost, record, view.spread)
    if hoped.worth < least:
        return None  # a place that is as uncertain as the values differ would not be worth it
    # Length scales are learned anew whenever there are a quarter more points.
    first = alike[: CONSTANTS.checkpoint(len(alike))]
    first = sorted(first, key=lambda point: point.value)[: CONSTANTS.surrogate_points]
    learned = _learned(*(part.tobytes() for part in _data(first, where, roof, scale)))
    x, direction, noise, targets = _data(lowest, where, roof, scale)
    process = learned.condition(Rows(x, direction, noise), targets)
    candidates = _candidates(view, best.unit[where])
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
        view.spread,
    )


def _candidates(view: View, base: np.ndarray) -> np.ndarray:
    """Random places, and some that are the best in all coordinates but some.

    A valley is often left by moving in some coordinates only.
    """
    rng, size, where = view.rng, len(base), view.best.where
    count = int(CONSTANTS.hops * CONSTANTS.candidates)
    share = rng.choice(CONSTANTS.shares, (count, 1)) + 0.5 / size
    hops = np.where(rng.random((count, size)) < share, rng.random((count, size)), base)
    found = np.concatenate([rng.random((CONSTANTS.candidates - count, size)), hops])
    away = np.abs(found[:, None] - view.places[None, :, where]).max(axis=2).min(axis=1)
    return found[away >= min(CONSTANTS.apart, float(np.sort(away)[-CONSTANTS.left]))]


def _data(
    points: list[Point], where: np.ndarray, roof: float, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, directions, noise and targets: values, bounded above, and derivatives.

    There are as many derivatives as there is room for: all, or that along the gradient.
    """
    size = int(where.sum())
    values = np.array([point.value for point in points])
    places = [point.unit[where] for point in points]
    directions = [np.zeros(size) for _ in points]
    noise = [0.0] * len(points)
    targets = list((np.minimum(values, roof) - np.median(values)) / scale)
    room = CONSTANTS.surrogate_rows - len(points)
    for point in points:
        slope = point.gradient[where]
        if point.value >= roof or not np.isfinite(slope).all() or room < 1 or not slope.any():
            continue
        length = float(np.linalg.norm(slope))
        ways = np.eye(size) if room >= CONSTANTS.whole * size else (slope / length)[None]
        places += [point.unit[where]] * len(ways)
        directions += list(ways)
        noise += [point.error * length / scale] * len(ways)
        targets += list(ways @ slope / scale)
        room -= len(ways)
    return np.array(places), np.array(directions), np.array(noise), np.array(targets)


@functools.lru_cache(maxsize=32)
def _learned(places: bytes, directions: bytes, noise: bytes, targets: bytes) -> GaussianProcess:
    """Of the arrays' bytes, so that those of the last suggestions are remembered."""
    y, error = np.frombuffer(targets), np.frombuffer(noise)
    x, along = (np.frombuffer(part).reshape(len(y), -1) for part in (places, directions))
    groups = np.zeros(x.shape[1], int)
    return fit(Rows(x, along, error), y, groups, iterations=CONSTANTS.surrogate_iterations)
