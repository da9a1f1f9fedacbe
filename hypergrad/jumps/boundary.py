"""Whether a function jumps where a decision in it flips.

The samples of a neighbourhood are moved so that the decision is just about to flip; what leaves the
neighbourhood is compared for both outcomes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hypergrad.jumps.neighbourhood import Neighbourhood
from hypergrad.jumps.program import Equation

_SAMPLES = 64
# Both signs, from a thousandth to a million: a threshold may be in any unit.
_SCALE = np.geomspace(1.03e-3, 1e6, 91)
_GRID = np.concatenate([-_SCALE[::-1], _SCALE])
_HALVINGS = 60
# Relative size of a jump. Branches that are approximations of one function differ by less.
_JUMP = 1e-3


def jumps(site: Equation, around: Neighbourhood) -> bool:
    """Whether what leaves the neighbourhood of a decision differs where the decision flips."""
    leaving = around.leaving(site.outputs[0])
    rng = np.random.default_rng(0)

    def draw(key: Any) -> np.ndarray:
        if around.truth(key):
            return rng.integers(0, 2, _SAMPLES).astype(bool)
        # Rates, weights and thresholds are positive; data, activations and parameters are anything.
        positive = rng.uniform(0.05, 0.95, _SAMPLES)
        return positive if around.positive(key) else rng.normal(size=_SAMPLES)

    def distance(given: dict) -> Any:
        left, *right = (around.value(atom, given, draw) for atom in site.inputs)
        return left - right[0] if right else left

    def along(key: Any, drawn: dict, value: Any) -> Any:
        return distance({**drawn, key: value})

    with np.errstate(all="ignore"):
        drawn: dict[Any, Any] = {}
        distance(drawn)
        for name in leaving:
            around.value(name, drawn, draw)
        # Without what follows from it, which is evaluated anew.
        drawn = {key: value for key, value in drawn.items() if around.entering(key)}
        for moved in drawn:
            at = _boundary(partial(along, moved, drawn))
            met = np.isfinite(at)
            if around.positive(moved) and (at[met] > 0).any():
                met &= at > 0
            if not met.any():
                continue
            outcomes = (-1.0, 1.0) if site.name == "sign" else (False, True)
            both = [{**drawn, moved: at, site.outputs[0]: np.full(_SAMPLES, o)} for o in outcomes]
            differ = np.zeros(_SAMPLES, bool)
            for name in leaving:
                low, high = (np.asarray(around.value(name, given, draw), float) for given in both)
                differ |= np.abs(high - low) > _JUMP * (np.abs(low) + np.abs(high)) + 1e-9
            return bool(np.mean(differ[met]) > 0.1)
    return False


def _boundary(distance: Callable[[Any], Any]) -> np.ndarray:
    """Where the distance changes its sign, for each sample; NaN where it does not."""
    shape = (_GRID.size, _SAMPLES)
    values = np.broadcast_to(distance(np.broadcast_to(_GRID[:, None], shape)), shape)
    flips = values[1:] * values[:-1] < 0
    first = np.argmax(flips, axis=0)
    low, high = _GRID[first], _GRID[first + 1]
    below = values[first, np.arange(_SAMPLES)] > 0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        same = (np.broadcast_to(distance(middle), _SAMPLES) > 0) == below
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    at = (low + high) / 2
    # A pole changes the sign, too.
    close = np.abs(distance(at)) <= 1e-6 * (1 + np.abs(at))
    return np.where(flips.any(axis=0) & close, at, np.nan)
