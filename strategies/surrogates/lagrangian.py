"""Constraints whose gradients are known, folded into the objective: the augmented Lagrangian.

    L(x) = f(x) + Σ ((λᵢ + ρᵢ cᵢ(x))₊² - λᵢ²) / 2ρᵢ            ∇L = ∇f + Σ (λᵢ + ρᵢ cᵢ)₊ ∇cᵢ

(Hestenes 1969; Powell 1969; Rockafellar 1974, for inequalities). Its minimum for the right
multipliers λ is the constrained one, at a finite ρ. Multipliers are those for which the gradient of
the Lagrangian at the incumbent is smallest, less of them the farther a constraint is from its bound
(Glad & Polak 1979), so that all of it is a function of the history, and observations of any origin
will do.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from strategies.feasibility import feasible_first
from strategies.observation import Observation

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: The penalty outweighs a median slope of the objective at so large a distance, in box sides, from
#: where a constraint is met.
_REACH = 0.05
#: A constraint so far from its bound, in box sides, has half of the multiplier that it would have.
_NEAR = 0.1
#: What is aimed at is so far inside, in box sides, over the square of the number of observations: a
#: descent comes from both sides, and what is left to be gained falls about as fast.
_MARGIN = 1e-2
#: Incumbent and multipliers depend on each other; they agree after a round or two.
_ROUNDS = 4


def has_all_slopes(history: Sequence[Observation]) -> bool:
    """Whether every constraint that has been violated comes with gradients."""
    violated: set[str] = set()
    known: set[str] = set()
    for item in history:
        violated |= {name for name, c in item.constraints.items() if not c <= 0}
        known |= item.constraint_slopes.keys()
    return violated <= known


def lagrangian(history: Sequence[Observation]) -> list[Observation]:
    """A history of the augmented Lagrangian, in place of objective and constraints.

    Of an observation that lacks the value of a constraint, or the gradient of one that pulls, the
    value or the gradient is not known either: it is ranked behind, as by `feasible_first`.
    """
    names = sorted({name for item in history for name in item.constraint_slopes})
    ranked = feasible_first(history)
    known = [item for item in history if item.status != "failed" and _is_whole(item, names)]
    if not names or not known:
        return ranked
    values = np.array([item.value for item in known], float)
    slopes = np.array([np.nan_to_num(item.slope) for item in known])  # type: ignore[arg-type]
    levels = np.array([[item.constraints[name] for name in names] for item in known])
    walls = np.array(
        [[np.nan_to_num(item.constraint_slopes[name]) for name in names] for item in known]
    )
    steepness = np.median(np.linalg.norm(walls, axis=2), axis=0)
    steepness = np.where(steepness > 0, steepness, 1.0)
    aims = _MARGIN / len(known) ** 2 * steepness
    size = float(np.median(np.linalg.norm(slopes, axis=1)))
    size = size or float(np.ptp(values)) or 1.0
    penalties = size / (_REACH * steepness**2)
    free = np.array([(item.unit > 0) & (item.unit < 1) for item in known])

    best = min(range(len(known)), key=lambda i: known[i].rank)
    multipliers = np.zeros(len(names))
    for _ in range(_ROUNDS):
        multipliers = _multipliers(slopes[best], levels[best] + aims, walls[best], free[best])
        pulls = np.maximum(multipliers + penalties * (levels + aims), 0.0)
        merit = values + np.sum((pulls**2 - multipliers**2) / (2 * penalties), axis=1)
        found = int(np.argmin(merit))
        if found == best:
            break
        best = found

    def folded(item: Observation, behind: Observation) -> Observation:
        level = np.array([item.constraints.get(name, np.nan) for name in names])
        if item.status == "failed" or not np.isfinite(level).all():
            return behind
        pull = np.maximum(multipliers + penalties * (level + aims), 0.0)
        added = float(np.sum((pull**2 - multipliers**2) / (2 * penalties)))
        return replace(
            item,
            value=float(item.value or 0.0) + added,
            gradient=_sum(item, dict(zip(names, pull, strict=True))),
            constraints={},
            constraint_gradients={},
        )

    return [folded(item, behind) for item, behind in zip(history, ranked, strict=True)]


def _is_whole(item: Observation, names: Sequence[str]) -> bool:
    return (
        item.slope is not None
        and item.constraint_slopes.keys() >= set(names)
        and all(np.isfinite(item.constraints[name]) for name in names)
    )


def _multipliers(slope: Vector, levels: Vector, walls: Matrix, free: NDArray[np.bool_]) -> Vector:
    """The least squares of the Lagrangian's gradient, in the coordinates that are at no bound."""
    rows = np.concatenate([walls[:, free].T, np.diag(np.abs(levels) / _NEAR)])
    return nnls(rows, np.concatenate([-slope[free], np.zeros(len(levels))]))[0]


def _sum(item: Observation, pulls: dict[str, float]) -> dict[str, Any] | None:
    """The gradient of the objective and of what pulls; without the keys that one of them lacks."""
    if item.gradient is None:
        return None
    total = {path: np.asarray(entry, float) for path, entry in item.gradient.items()}
    for name, pull in pulls.items():
        if not pull:
            continue
        wall = item.constraint_gradients.get(name)
        if wall is None:
            return None
        total = {
            path: entry + pull * np.asarray(wall[path], float)
            for path, entry in total.items()
            if path in wall
        }
    return {path: entry.tolist() for path, entry in total.items()} or None
