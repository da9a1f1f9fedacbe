"""Whether a function jumps where a decision in it flips.

The samples of a neighbourhood are moved so that the decision is just about to flip; what leaves the
neighbourhood is compared for both outcomes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hypergrad.jumps.elementwise import LOOKUPS, STEPS
from hypergrad.jumps.neighbourhood import Neighbourhood
from hypergrad.jumps.program import Constant, Equation

_SAMPLES = 64
# Both signs, from a thousandth to a million: a threshold may be in any unit.
_SCALE = np.geomspace(1.03e-3, 1e6, 91)
_GRID = np.concatenate([-_SCALE[::-1], _SCALE])
_HALVINGS = 60
# Relative size of a jump. Branches that are approximations of one function differ by less.
_JUMP = 1e-3
# Distance from a step to either side of it, and what a continuous function may change on the way.
_CLOSE, _STEEP = 1e-8, 1e-5


def jumps(site: Equation, around: Neighbourhood) -> bool:
    """Whether what leaves the neighbourhood of a decision differs where the decision flips."""
    leaving = around.leaving(site.outputs[0])
    rng = np.random.default_rng(0)

    def draw(key: Any) -> np.ndarray:
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


def steps(site: Equation, around: Neighbourhood) -> bool:
    """Whether what leaves the neighbourhood of a rounding differs on the two sides of a step.

    Not so of linear interpolation in a table: there the share of the one neighbour is zero where
    the rounded number moves on to the other.
    """
    leaving = around.leaving(site.outputs[0])
    rng = np.random.default_rng(0)
    at_integers = np.resize(_integers(around), _SAMPLES) + STEPS[site.name]

    def draw(key: Any) -> np.ndarray:
        positive = rng.uniform(0.05, 0.95, _SAMPLES)
        return positive if around.positive(key) else 2 * rng.normal(size=_SAMPLES)

    def value(name: Any, given: dict) -> np.ndarray:
        return np.broadcast_to(np.asarray(around.value(name, given, draw), float), _SAMPLES)

    found = False
    with np.errstate(all="ignore"):
        drawn: dict[Any, Any] = {}
        for name in (site.inputs[0], *leaving):
            value(name, drawn)
        drawn = {key: value for key, value in drawn.items() if around.entering(key)}
        ways = [(moved, side) for moved in drawn for side in (1, -1)]
        for moved, side in ways:

            def distance(far: Any, moved: Any = moved, side: int = side) -> Any:
                given = {**drawn, moved: side * far}
                return around.value(site.inputs[0], given, draw) - at_integers

            if side < 0 and around.positive(moved):
                continue
            at = side * _boundary(distance, _SCALE)
            away = _CLOSE * (np.abs(at) + 1e-3)
            low, high = ({**drawn, moved: at + by} for by in (-away, away))
            met = np.abs(value(site.outputs[0], high) - value(site.outputs[0], low)) == 1
            if not met.any():
                continue
            found = True
            for name in leaving:
                one, other = value(name, low), value(name, high)
                differ = np.abs(other - one) > _JUMP * (np.abs(one) + np.abs(other)) + _STEEP
                if (differ & met).any():
                    return True
    return not found


def _integers(around: Neighbourhood) -> np.ndarray:
    """Steps to look at: small ones, and those at the numbers and the shapes of the program."""
    known = {-2, -1, 0, 1, 2, 3}
    program = around.program
    for eqn in program.equations:
        for atom in eqn.inputs:
            sizes = program.shapes[atom] if isinstance(atom, int) and eqn.name in LOOKUPS else ()
            value = atom.value if isinstance(atom, Constant) else None
            if value is not None and float(value).is_integer():
                sizes = (*sizes, int(value))
            known |= {size + near for size in sizes if size < 1e6 for near in (-1, 0, 1)}
    return np.asarray(sorted(known, key=abs)[:_SAMPLES], float)


def _boundary(distance: Callable[[Any], Any], grid: np.ndarray = _GRID) -> np.ndarray:
    """Where on a grid the distance first changes its sign, for each sample; NaN: nowhere."""
    shape = (grid.size, _SAMPLES)
    values = np.broadcast_to(distance(np.broadcast_to(grid[:, None], shape)), shape)
    flips = values[1:] * values[:-1] < 0
    first = np.argmax(flips, axis=0)
    low, high = grid[first], grid[first + 1]
    below = values[first, np.arange(_SAMPLES)] > 0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        same = (np.broadcast_to(distance(middle), _SAMPLES) > 0) == below
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    at = (low + high) / 2
    # A pole changes the sign, too.
    close = np.abs(distance(at)) <= 1e-6 * (1 + np.abs(at))
    return np.where(flips.any(axis=0) & close, at, np.nan)
