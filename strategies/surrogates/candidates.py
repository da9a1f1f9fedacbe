"""Maximising an acquisition function over a mixed space.

Random points of the whole space and steps around the best points known compete; from the few with
the largest scores a local search goes on, over every other value of each discrete hyperparameter
and steps of all sizes in the continuous ones. Nothing that was tried before is offered again.

The largest score of a coordinate on which the score hardly depends is at a bound, where the least
is known. Searches that always go there see few values of it, and learn late that it matters after
all beside another value of the others. With `slack` such coordinates are drawn at random.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from strategies.space import Categorical, SearchSpace

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Score = Callable[[Matrix], Vector]
Refine = Callable[[Vector, float], tuple[Vector, float]]

_RANDOM = 1500
_CLIMBS = 4
_ROUNDS = 8
_STEPS = 100
# Bounds for categoricals of hundreds of choices, each of which is a coordinate: entries of the
# random points, and choices that a neighbourhood looks at.
_ENTRIES = 600_000
_CHOICES = 100
# Coordinates that are drawn anew, of arrays with more a random choice: a score for each is what a
# suggestion has time for. Draws of each, of which the first that is good enough is taken.
_REDRAWN = 50
_DRAWS = 8


def maximise(
    space: SearchSpace,
    score: Score,
    anchors: Matrix,
    tried: Matrix,
    rng: np.random.Generator,
    refine: Refine | None = None,
    region: tuple[Vector, Vector] | None = None,
    slack: float = 0.0,
) -> Vector | None:
    """Unit coordinates with a large score, or `None` if nothing untried was found.

    **Arguments:**

    - `score`: of the rows of a matrix of unit coordinates.
    - `anchors`: `(k, dimension)`, points whose neighbourhoods are worth a look.
    - `tried`: `(n, dimension)`, points not to be offered again.
    - `refine`: moves a point to one with a larger score, e.g. along the score's slope.
    - `region`: lower and upper corner of a box to stay in, with `refine`; all by default.
    - `slack`: how far below the largest found a score may be. Within it one hyperparameter after
      the other, of arrays one entry, is replaced by a random value.
    """
    seen = set(_keys(tried))
    low, high = region or (np.zeros(space.dimension), np.ones(space.dimension))

    def untried(units: Matrix) -> tuple[Matrix, Vector]:
        rows = {key: row for row, key in enumerate(_keys(units)) if key not in seen}
        units = units[list(rows.values())]
        return units, score(units) if len(units) else np.empty(0)

    def around(point: Vector) -> Matrix:
        return np.clip(neighbours(space, point, rng), low, high)

    count = min(_RANDOM, _ENTRIES // max(space.dimension, 1) + 1)
    pool = space.snap(low + (high - low) * rng.random((count, space.dimension)))
    points, scores = untried(np.concatenate([pool, *(around(anchor) for anchor in anchors)]))
    # What follows the slope in every coordinate needs no steps at random.
    rounds = 0 if refine is not None and space.differentiable.all() else _ROUNDS
    best, best_score = None, -np.inf
    for start in np.argsort(-scores, kind="stable")[:_CLIMBS]:
        point, value = points[start], float(scores[start])
        for _ in range(rounds):
            near, found = untried(around(point))
            if not len(found) or found.max() <= value:
                break
            point, value = near[np.argmax(found)], float(found.max())
        if refine is not None:
            refined, larger = refine(point, value)
            # At the edge of the box a slope may lead to one and the same corner again.
            if _keys(refined[None])[0] not in seen:
                point, value = refined, larger
        if value > best_score:
            best, best_score = point, value
    if best is None or not slack:
        return best
    free = _free(space)
    for part in rng.permutation(len(free))[:_REDRAWN]:
        rows = np.repeat(best[None], _DRAWS, 0)
        rows[:, free[part]] = low[free[part]] + (high - low)[free[part]] * rng.random(
            (_DRAWS, len(free[part]))
        )
        rows, scores = untried(space.snap(rows))
        enough = np.flatnonzero(scores >= best_score - slack)
        if len(enough):
            best = rows[enough[0]]
    return best


def _free(space: SearchSpace) -> list[NDArray[np.intp]]:
    """Coordinates that move by themselves: an entry of an array, a choice as a whole."""
    parts: list[NDArray[np.intp]] = []
    for path, where in space.slices.items():
        indices = np.arange(where.start, where.stop)
        parts += [*indices[:, None]] if space.domains[path].differentiable else [indices]
    return [part for part in parts if len(part)]


def neighbours(space: SearchSpace, point: Vector, rng: np.random.Generator) -> Matrix:
    """Points that differ in one discrete hyperparameter, or a little in the continuous ones."""
    blocks = []
    for path, where in space.slices.items():
        domain = space.domains[path]
        if not domain.size or domain.differentiable:
            continue
        if isinstance(domain, Categorical):
            chosen = np.arange(domain.size)
            if domain.size > _CHOICES:
                chosen = rng.choice(domain.size, _CHOICES, replace=False)
            options = np.zeros((len(chosen), domain.size))
            options[np.arange(len(chosen)), chosen] = 1.0
        else:
            near = point[where] + 0.05 * rng.standard_normal((4, domain.size))
            far = np.repeat(np.linspace(0, 1, 21)[:, None], domain.size, 1)
            options = domain.snap(np.concatenate([near, far]))
        block = np.repeat(point[None], len(options), 0)
        block[:, where] = options
        blocks.append(block)
    free = np.flatnonzero(space.differentiable)
    if len(free):
        block = np.repeat(point[None], _STEPS, 0)
        sizes = 10.0 ** rng.uniform(-3, -0.5, (_STEPS, 1))
        moved = rng.random((_STEPS, len(free))) < max(0.5, 1 / len(free))
        block[:, free] += sizes * moved * rng.standard_normal((_STEPS, len(free)))
        blocks.append(block)
    return space.snap(np.concatenate(blocks))


def _keys(units: Matrix) -> list[bytes]:
    """One for each row, the same where the rows are."""
    # Adding zero turns -0.0 into 0.0, whose bytes differ.
    return [row.tobytes() for row in np.round(units, 9) + 0.0]
