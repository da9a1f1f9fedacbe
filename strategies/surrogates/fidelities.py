"""Observations at several resources as one data set for a Gaussian process.

A configuration that was trained for 2, 6 and 17 epochs gives three values, and its ranking hardly
changes between them: on learning curves the rank correlation of neighbouring rungs is 0.9 and more.
So the resource becomes one more coordinate of the process, its logarithm scaled to [0, 1], and the
values lose what all configurations have in common at a resource. That level is estimated from
pairs, the same configuration at two neighbouring resources, never from the average of a rung: only
the better configurations reach the higher ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.observation import Observation
from strategies.surrogates.outputs import imputed, logarithmic, standardised

Vector = NDArray[np.float64]

#: Further values after which those at a resource have a scale of their own.
_SCALED = 4


@dataclass(frozen=True)
class Aligned:
    """Observations made comparable.

    - `place`: `(n,)`, the resource of each, 0 the lowest and 1 the highest.
    - `target`: `(n,)`, the transformed values, centred with unit spread.
    - `slope`: `(n,)`, the derivative of the target by the value.
    """

    place: Vector
    target: Vector
    slope: Vector


def paired(history: Sequence[Observation]) -> bool:
    """Whether a configuration was observed at two resources, so that they can be compared."""
    seen: dict[int, float | None] = {}
    for item in history:
        if item.number is None or item.status == "failed":
            continue
        if seen.setdefault(item.number, item.resource) != item.resource:
            return True
    return False


def aligned(history: Sequence[Observation]) -> Aligned:
    """Make a history comparable in which `paired` configurations tie the resources together.

    Failures take the worst finite value of their resource, or of all if it has none.
    """
    resources = np.array([np.nan if o.resource is None else o.resource for o in history], float)
    resources = np.where(np.isfinite(resources), resources, np.nanmax(resources))
    values = np.array([np.nan if o.value is None else o.value for o in history], float)
    values[[o.status == "failed" for o in history]] = np.nan
    levels, level = np.unique(resources, return_inverse=True)
    for i in range(len(levels)):
        if np.isfinite(values[level == i]).any():
            values[level == i] = imputed(values[level == i])
    values = imputed(values)
    flat, slope = logarithmic(values)
    of_level = _of_levels([o.number for o in history], level, flat)
    target = flat - of_level[level]
    spread = max(float(target.std()), 1e-12)
    target = (target - target.mean()) / spread
    log = np.log(levels)
    place = (log - log[0]) / max(log[-1] - log[0], 1e-12)
    return Aligned(place[level], target, slope / spread)


def stacked(resources: Vector, values: Vector) -> tuple[Vector, Vector]:
    """Targets where each configuration was observed once, most of them because they were stopped.

    Without pairs nothing says how two resources compare. A scheduler stops the worse ones. So what
    was stopped at a resource is taken for no better than the median of what went further, and
    differs from the best that was stopped there by its value, on the resource's own scale. What was
    not stopped says so by its value, too: the first trials of a search go far however bad they are.

    **Arguments:**

    - `resources`, `values`: `(n,)`, NaN where unknown; what has a value and no resource was trained
      to the end.

    **Returns:** The targets, centred with unit spread, and their derivatives by the values.
    """
    end = np.max(resources, where=np.isfinite(resources), initial=0.0)
    resources = np.where(np.isfinite(resources), resources, end)
    target, slope = np.full_like(values, np.nan), np.zeros_like(values)
    levels = np.unique(resources)[::-1]
    if len(levels) == 1:
        return logarithmic(imputed(values))
    for resource in levels:
        here = (resources == resource) & np.isfinite(values)
        if here.any():
            further = target[np.isfinite(target)]
            flat, by_value = logarithmic(values[here])
            # Few values do not say what a large difference is; equal ones, nothing of derivatives.
            sure = min(1.0, (here.sum() - 1) / _SCALED)
            slope[here] = sure * by_value if np.ptp(values[here]) else 0.0
            flat = sure * (flat - flat.min())
            target[here] = flat + (np.median(further) if len(further) else 0.0)
    target, scale = standardised(imputed(target))
    return target, slope * scale


def _of_levels(numbers: Sequence[int | None], level: NDArray[np.intp], values: Vector) -> Vector:
    """What each level adds, from the pairs that tie it to the one below."""
    known: list[dict[int, float]] = [{} for _ in range(int(level.max()) + 1)]
    for number, i, value in zip(numbers, level, values, strict=True):
        if number is not None:
            known[i][number] = float(value)
    adds = np.zeros(len(known))
    adds[0] = values[level == 0].mean()
    for i in range(1, len(known)):
        below = next((j for j in reversed(range(i)) if known[i].keys() & known[j].keys()), None)
        if below is None:
            adds[i] = values[level == i].mean()
        else:
            both = known[i].keys() & known[below].keys()
            adds[i] = adds[below] + np.mean([known[i][n] - known[below][n] for n in both])
    return adds
