"""A trust region: the box around the best point in which a surrogate is searched.

Expected improvement looks for the best place of the whole space, and in many dimensions, or among
many valleys, most of what it tries is far from anything known. As in TuRBO (Eriksson, Pearce,
Gardner, Turner & Poloczek 2019) the box grows while what the model suggests is better than all
before, shrinks while it is not, and its sides are in proportion to the length scales. When it has
become so small that nothing is left to be found in it, it is as large as the space again. All of
this is computed from the history, so that a search goes on after a restart as if nothing had been.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strategies.observation import Observation

Vector = NDArray[np.float64]

# Sides relative to the space: as at the start, and where it starts anew.
_LARGEST = 1.0
_SMALLEST = 2.0**-6
# So many suggestions in a row decide.
_SUCCESSES = 2
_FAILURES = 2


def side(history: Sequence[Observation]) -> float:
    """Side of the region after a history, in any order: only what a model suggested counts."""
    length, best = _LARGEST, np.inf
    successes = failures = 0
    ordered = sorted(history, key=lambda item: -1 if item.number is None else item.number)
    for item in ordered:
        value = np.inf if item.status == "failed" or item.value is None else float(item.value)
        better, best = value < best, min(value, best)
        if item.note.get("origin") != "model":
            continue
        successes, failures = (successes + 1, 0) if better else (0, failures + 1)
        if successes == _SUCCESSES:
            length, successes = min(2.0 * length, _LARGEST), 0
        elif failures == _FAILURES:
            length, failures = 0.5 * length, 0
        if length < _SMALLEST:
            length = _LARGEST
    return length


def box(center: Vector, scales: Vector, length: float) -> tuple[Vector, Vector]:
    """Lower and upper corner: sides in proportion to the length scales, `length` their mean."""
    half = 0.5 * length * scales / np.exp(np.mean(np.log(scales)))
    return np.clip(center - half, 0.0, 1.0), np.clip(center + half, 0.0, 1.0)
