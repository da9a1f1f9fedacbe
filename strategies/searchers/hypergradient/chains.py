"""Chains: the points that descended from one start, and the step that comes next."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.points import Point
from strategies.surrogates.quasi_newton import (
    RULES,
    Model,
    Outcome,
    Pair,
    Region,
    Step,
    model_of,
    pair,
    step,
)


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain.

    - `points`: by number.
    - `where`: mask of the coordinates that it descends in.
    - `pairs`: curvature seen on it, oldest first.
    - `region`: where the model is believed.
    """

    name: int
    points: Sequence[Point]
    best: Point
    where: np.ndarray
    pairs: Sequence[Pair]
    region: Region

    @cached_property
    def model(self) -> Model:
        """The model around the best point, in the coordinates of `where`."""
        return model_of(self.best.gradient[self.where], self.pairs, self.region.radius)

    @cached_property
    def earlier(self) -> tuple[float, int]:
        """Its best value some evaluations ago, and how many."""
        ago = min(CONSTANTS.recent, len(self.points) - 1)
        values = [point.value for point in self.points[: len(self.points) - ago]]
        return min(values), ago

    @cached_property
    def rate(self) -> float:
        """What it has gained lately for each evaluation."""
        before, ago = self.earlier
        # The first point may have failed.
        return (before - self.best.value) / ago if ago and np.isfinite(before) else 0.0

    def needed(self, level: float, near: float) -> float:
        """Evaluations until it is so near to a level, if it goes on as it has lately."""
        gap = self.best.value - level
        if gap <= near:
            return 1.0
        before, ago = self.earlier
        left = CONSTANTS.left_over
        if ago and np.isfinite(before):
            left = (gap / (before - level)) ** (1.0 / ago)
        return max(1.0, float(np.log(near / gap) / np.log(left))) if left < 1.0 else np.inf

    @cached_property
    def next(self) -> tuple[Step, float]:
        """The next step, and what cut it."""
        return self.step()

    def step(self, length: float = 1.0) -> tuple[Step, float]:
        """The next step, in all coordinates, so much longer, and what cut it.

        It is cut until it does not end where an earlier one was worse than where this one begins.
        """
        where, length = self.where, length * max(1.0 - self.best.error, RULES.shortest)
        cut = self.region.cut * length
        found = np.zeros_like(self.best.unit)
        if not where.any():
            return Step(found, 0.0), cut
        worse = np.array([point.unit for point in self.points if point is not self.best])
        while True:
            region = Region(self.region.radius, cut)
            inner = step(self.best.unit[where], self.best.gradient[where], self.model, region)
            found[where] = inner.s
            near = RULES.shortest * float(np.max(np.abs(found), initial=0.0))
            away = np.abs(worse - self.best.unit - found).max(axis=1) if len(worse) else [np.inf]
            if np.min(away) > near or cut < CONSTANTS.rounding or not near:
                return Step(found, inner.decrease), cut
            cut *= RULES.longest


def chains(points: Sequence[Point], graded: np.ndarray, radius: float, memory: int) -> list[Chain]:
    """The best chains, best first.

    **Arguments:**

    - `graded`: mask of the coordinates to descend in.
    - `radius`: first radius of the region.
    - `memory`: pairs kept of each.
    """
    groups: dict[tuple[int, bytes], list[Point]] = {}
    for point in points:
        fixed = np.where(graded, -1.0, point.unit).tobytes()
        groups.setdefault((point.chain, fixed), []).append(point)
    bests = [
        (min(members, key=lambda point: point.value), name, members)
        for (name, _), members in groups.items()
    ]
    finite = [found for found in bests if np.isfinite(found[0].value)]
    finite.sort(key=lambda found: (found[0].value, found[1]))
    known: dict[int, Chain] = {}
    # A chain of one point takes the curvature of the chain that it was changed from.
    for best, name, members in sorted(finite[: CONSTANTS.chains], key=lambda found: found[1]):
        chain = _chain(name, best, members, graded, radius, memory)
        parent = best.move and best.move.parent is not None and known.get(best.move.parent)
        if parent and not chain.pairs and np.array_equal(parent.where, chain.where):
            chain = Chain(name, chain.points, best, chain.where, parent.pairs, parent.region)
        known.setdefault(name, chain)
        if known[name] is not chain and best.value < known[name].best.value:
            known[name] = chain
    return sorted(known.values(), key=lambda chain: (chain.best.value, chain.name))


def _chain(
    name: int, best: Point, members: list[Point], graded: np.ndarray, radius: float, memory: int
) -> Chain:
    where = np.isfinite(best.gradient) & graded
    by_name = {point.name: point for point in members}
    region = Region(radius)
    failed: list[tuple[float, Outcome]] = []
    for point in members:
        move = point.move
        base = None if move is None or move.move != "step" else by_name.get(move.base or 0)
        if move is None or base is None:
            continue
        along = (point.unit - base.unit)[where]
        slope = float(np.nan_to_num(base.gradient[where]) @ along)
        end = float(point.gradient[where] @ along)
        outcome = Outcome(move.length, move.decrease, base.value - point.value, slope, end)
        region = region.after(outcome)
        if base is best:
            failed.append((move.cut, outcome))
    cuts = [Region(radius, cut).shortened(outcome).cut for cut, outcome in failed]
    region = Region(region.radius, min(cuts, default=1.0))
    return Chain(name, members, best, where, _pairs(members, where)[-memory:], region)


def _pairs(points: Sequence[Point], where: np.ndarray) -> list[Pair]:
    """Differences from each best point of the chain to the next.

    A step that failed is left out: it is long where the model was wrong, and its mean curvature
    says little of what is near. Steps evaluated at the same time begin at the same point; taken one
    after the other, their ends are pairs that lie nearer to the best.
    """
    found: list[Pair] = []
    best: Point | None = None
    for point in points if where.any() else ():
        if not np.isfinite(point.gradient[where]).all():
            continue
        if best is not None and point.value >= best.value:
            continue
        if best is not None:
            s, y = (point.unit - best.unit)[where], (point.gradient - best.gradient)[where]
            ends = (best.gradient[where], point.gradient[where])
            noise = max(best.error, point.error) * max(float(np.linalg.norm(one)) for one in ends)
            one = pair(s, y, noise)
            found += [] if one is None else [one]
        best = point
    return found
