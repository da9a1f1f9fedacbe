"""What a search with several objectives has found: the front, its hypervolume, its knee."""

from collections.abc import Iterable, Sequence

import numpy as np

from strategies.arguments import instances
from strategies.observation import Observation


def front(history: Iterable[Observation]) -> list[Observation]:
    """The complete, feasible observations that no other one dominates, by the first objective.

    **Arguments:**

    - `history`: of a `Ledger`, a result, or an engine. Values are minimised.
    """
    from strategies.surrogates.hypervolume import dominated

    told = instances("history", history, Observation)
    known = [item for item in told if item.status == "complete" and item.feasible]
    if not known:
        return []
    values = np.array([item.values or (item.value,) for item in known], float)
    best = [item for item, beaten in zip(known, dominated(values), strict=True) if not beaten]
    return sorted(best, key=lambda item: item.values or (item.value,))


def hypervolume(history: Iterable[Observation], reference: Sequence[float]) -> float:
    """The volume that the front dominates, up to `reference`, all objectives minimised.

    **Raises:** `ValueError` if the reference does not have a number for each objective.
    """
    from strategies.surrogates.hypervolume import hypervolume as volume

    try:
        bound = np.array(reference, float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"'reference': expected numbers, received {reference!r:.80}") from None
    best = front(history)
    count = max((len(item.values) or 1 for item in best), default=bound.size)
    if bound.shape != (count,) or not np.isfinite(bound).all():
        raise ValueError(f"'reference': expected {count} numbers, received {reference!r:.80}")
    values = np.array([item.values or (item.value,) for item in best], float).reshape(-1, count)
    return volume(values, bound)


def knee(history: Iterable[Observation]) -> Observation | None:
    """The member of the front that a little more of any objective would cost most elsewhere.

    With each objective scaled to the extent of the front, the one with the smallest sum: with two
    objectives the farthest from the line between the ends (Das 1999). `None` without a front.
    """
    best = front(history)
    if not best:
        return None
    values = np.array([item.values or (item.value,) for item in best], float)
    extent = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    return best[int(np.argmin(scaled.sum(axis=1)))]


__all__ = ["front", "hypervolume", "knee"]
