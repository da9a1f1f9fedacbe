"""Tuning at sizes that double, in ranges that halve around the last optimum."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.arguments import finite, integer, positive

Objective = Callable[[dict[str, float], float], float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """One size.

    - `size`: as it was given.
    - `ranges`: what was tried of each hyperparameter, lowest and highest.
    - `config`, `value`: the best.
    - `bracketed`: no best value is at the end of its range. The next stage is centred on it all the
      same, and reaches further; of the last stage it means that the optimum was not found.
    """

    size: float
    ranges: dict[str, Range]
    config: dict[str, float]
    value: float
    bracketed: bool


@dataclass(frozen=True)
class Telescoped:
    """What telescoping has found.

    - `stages`: one for each size.
    - `rows`: all trainings, with `"size"` and `"value"`.
    """

    stages: tuple[Stage, ...]
    rows: list[dict[str, float]]

    @property
    def config(self) -> dict[str, float]:
        """The best at the largest size."""
        return self.stages[-1].config

    @property
    def points(self) -> list[dict[str, float]]:
        """Bracketed optima by size, as `PowerLaw.fit` takes them."""
        return [
            {**each.config, "value": each.value, "size": each.size}
            for each in self.stages
            if each.bracketed
        ]

    def cost(self, of: Callable[[float], float]) -> float:
        """What all trainings cost, in trainings of the largest size.

        **Arguments:** `of`: the cost of one training by size, in any unit.
        """
        return sum(of(row["size"]) for row in self.rows) / of(self.stages[-1].size)


def telescope(
    objective: Objective,
    ranges: Mapping[str, Range],
    sizes: Iterable[float],
    *,
    points: int = 5,
    shrink: float = 0.5,
    record: list[dict[str, float]] | None = None,
) -> Telescoped:
    """Tune at each size, on a grid in logarithms around the last size's optimum.

    With a parametrisation that keeps optima (see `hypergrad.transfer`), an optimum moves less at
    each doubling of the width. So the range may halve each time, and the grid, with as many points,
    gets finer. Where trainings cost as the square of the width or more, all sizes together cost
    little more than the last one's grid. Essential AI, "Practical Efficiency of Muon for
    Pretraining" (2025), section 4.

    **Arguments:**

    - `objective`: `objective(config, size) -> loss`; not finite is a failure.
    - `ranges`: lowest and highest value by name, positive, of the first size. Few of them: a size
      has `points ** len(ranges)` trainings.
    - `sizes`: ascending, each about twice the last.
    - `points`: of each hyperparameter at a size, odd, so that the last optimum is among them.
    - `shrink`: how much shorter a range is in logarithms than the last size's, in (0, 1].
    - `record`: trainings that are known, as in `Telescoped.rows`; new ones are appended at once.
      Nothing in it is trained again: an interrupted run goes on from it.

    **Raises:** `ValueError` for ranges that are not positive or sizes that do not ascend, and if no
    training of a size ends with a finite loss.
    """
    if not callable(objective):
        raise ValueError(f"'objective': expected a function, received {objective!r:.80}")
    points = integer("points", points, 3)
    if points % 2 == 0:
        raise ValueError(f"'points': expected an odd number, received {points}")
    shrink = positive("shrink", shrink, 1.0)
    at_first = _ranges(ranges)
    order = _ascending(sizes)
    record = [] if record is None else record
    known = {_key(row, at_first): float(row["value"]) for row in record}
    centre = {name: math.sqrt(low * high) for name, (low, high) in at_first.items()}
    stages = []
    for number, size in enumerate(order):
        grids = {}
        for name, (low, high) in at_first.items():
            half = 0.5 * math.log(high / low) * shrink**number
            grids[name] = centre[name] * np.exp(np.linspace(-half, half, points))
        tried = []
        for values in itertools.product(*grids.values()):
            config = {name: float(v) for name, v in zip(grids, values, strict=True)}
            key = _key({**config, "size": size}, at_first)
            if key not in known:
                known[key] = float(objective(dict(config), size))
                record.append({**config, "size": size, "value": known[key]})
            tried.append((known[key] if math.isfinite(known[key]) else math.inf, config))
        value, best = min(tried, key=lambda pair: pair[0])
        if not math.isfinite(value):
            raise ValueError(
                f"size {size:g}: expected a finite loss, received none in {len(tried)}"
            )
        ends = {name: (float(g[0]), float(g[-1])) for name, g in grids.items()}
        inside = all(ends[name][0] < best[name] < ends[name][1] for name in ends)
        stages.append(Stage(size, ends, best, value, inside))
        centre = best
    return Telescoped(tuple(stages), record)


def _key(row: Mapping[str, float], names: Iterable[str]) -> tuple[float, ...]:
    # A grid is computed again when a run goes on: to nine digits it is the same.
    return tuple(float(f"{row[name]:.9g}") for name in (*names, "size"))


def _ranges(ranges: Any) -> dict[str, Range]:
    if not isinstance(ranges, Mapping) or not ranges:
        raise ValueError(f"'ranges': expected lowest and highest by name, received {ranges!r:.80}")
    found = {}
    for name, pair in ranges.items():
        good = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not good:
            raise ValueError(f"'ranges': {name!r}: expected two numbers, received {pair!r:.80}")
        low, high = (finite(str(name), x, "positive numbers that ascend") for x in pair)
        if not 0 < low < high:
            raise ValueError(
                f"'ranges': {name!r}: expected positive numbers that ascend, received {pair!r:.80}"
            )
        found[name] = (low, high)
    if {"size", "value"} & set(found):
        raise ValueError("'ranges': expected other names than 'size' and 'value', received one")
    return found


def _ascending(sizes: Any) -> list[float]:
    plain = hasattr(sizes, "__iter__") and not isinstance(sizes, str | bytes | Mapping)
    what = "positive numbers that ascend"
    found = [finite("sizes", size, what) for size in sizes] if plain else []
    if not found or any(b <= a for a, b in itertools.pairwise([0, *found])):
        raise ValueError(f"'sizes': expected {what}, received {sizes!r:.80}")
    return found
