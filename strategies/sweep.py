"""One hyperparameter at a time, on grids, until none gains any more."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strategies.arguments import integer

Config = dict[str, Any]
Objective = Callable[[Config], float]


@dataclass(frozen=True)
class Swept:
    """What a sweep has found.

    - `config`, `value`: the best.
    - `rows`: all trainings in their order, each the configuration with its `"value"`.
    - `rounds`: how often all coordinates were gone through.
    - `settled`: the last round gained no more than the threshold.
    - `edges`: names whose best value is at an end of its grid: not bracketed.
    """

    config: Config
    value: float
    rows: list[dict[str, Any]]
    rounds: int
    settled: bool
    edges: tuple[str, ...]


def coordinate_sweep(
    objective: Objective,
    grids: Mapping[str, Sequence[Any]],
    start: Mapping[str, Any] | None = None,
    *,
    threshold: float = 3e-3,
    most_rounds: int = 10,
    record: list[dict[str, Any]] | None = None,
) -> Swept:
    """Tune hyperparameters one after the other, each along its grid, from the best so far.

    Along a grid it walks downhill in steps of a quarter of the grid, halved when neither neighbour
    is better. A valley that runs across both axes is followed in small steps, or not at all.
    Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them" (2025).

    **Arguments:**

    - `objective`: takes a configuration, returns the loss, positive or negative; not finite is a
      failure.
    - `grids`: ordered values by name.
    - `start`: where to begin, values of the grids. Default: the middle of each.
    - `threshold`: a round whose gain is below this share of the loss is the last.
    - `most_rounds`: of all coordinates.
    - `record`: trainings that are known, as `Swept.rows`; new ones are appended at once. Nothing
      in it is trained again: an interrupted sweep goes on from it.

    **Raises:** `ValueError` for an empty grid, and a start that is not on it.
    """
    if not callable(objective):
        raise ValueError(f"'objective': expected a function, received {objective!r:.80}")
    most_rounds = integer("most_rounds", most_rounds, 1)
    if not isinstance(grids, Mapping) or not grids:
        raise ValueError(f"'grids': expected values by name, received {grids!r:.80}")
    axes = {name: _grid(name, values) for name, values in grids.items()}
    at = {name: len(values) // 2 for name, values in axes.items()}
    for name, wanted in dict(start or {}).items():
        if name not in axes or wanted not in axes[name]:
            here = axes.get(name, list(axes))
            raise ValueError(
                f"'start': {name!r}: expected one of {here!r:.120}, received {wanted!r}"
            )
        at[name] = axes[name].index(wanted)
    if not threshold >= 0:
        raise ValueError(
            f"'threshold': expected a number of at least 0, received {threshold!r:.80}"
        )
    record = [] if record is None else record
    known = {tuple(row[name] for name in axes): float(row["value"]) for row in record}

    def value(at: Mapping[str, int]) -> float:
        config = {name: axes[name][i] for name, i in at.items()}
        key = tuple(config.values())
        if key not in known:
            known[key] = float(objective(dict(config)))
            record.append({**config, "value": known[key]})
        return known[key] if math.isfinite(known[key]) else math.inf

    best, rounds, settled = value(at), 0, False
    while not settled and rounds < most_rounds:
        before = best
        for name in axes:
            at, best = _walked(value, at, name, len(axes[name]), best)
        rounds += 1
        settled = math.isfinite(before) and before - best <= threshold * abs(before)
    config = {name: axes[name][i] for name, i in at.items()}
    edges = tuple(n for n, i in at.items() if len(axes[n]) > 1 and i in (0, len(axes[n]) - 1))
    return Swept(config, best, record, rounds, settled, edges)


def _walked(
    value: Callable[[Mapping[str, int]], float],
    at: dict[str, int],
    name: str,
    count: int,
    best: float,
) -> tuple[dict[str, int], float]:
    """The best place along one grid."""
    stride, direction = max(1, count // 4), 1
    while stride:
        for way in (direction, -direction):
            there = {**at, name: min(max(at[name] + way * stride, 0), count - 1)}
            found = value(there)
            if found < best:
                at, best, direction = there, found, way
                break
        else:
            stride //= 2
    return at, best


def _grid(name: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise ValueError(f"'grids': {name!r}: expected ordered values, received {values!r:.80}")
    found = list(values)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"'grids': {name!r}: expected different values, received {found!r:.80}")
    return found


__all__ = ["Swept", "coordinate_sweep"]
