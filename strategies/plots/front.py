"""The trade-off between two objectives, or between value and cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from strategies.plots.style import BEST, COLOURS, readable, scale_of, single
from strategies.searched import searched
from strategies.space import SearchSpace


def front(source: Any, space: SearchSpace | Mapping[str, Any] | None = None) -> Figure:
    """The first two objectives of the complete trials, with the Pareto front between the two.

    Of a search with one objective, value against cost. Infeasible trials are left out.

    **Raises:** `ValueError` if no complete trial has a second objective or a cost.
    """
    seen = searched(source, space)
    complete = [item for item in seen.history if item.status == "complete" and item.feasible]
    several = [item for item in complete if len(item.values) > 1]
    if several:
        values = np.array([item.values[:2] for item in several], float)
        return _drawn(values[:, 1], values[:, 0], "second objective", "first objective")
    known = [item for item in complete if item.cost is not None and np.isfinite(item.cost)]
    if not known:
        raise ValueError("'source': expected complete trials with a cost, received none")
    cost = np.array([item.cost for item in known], float)
    value = np.array([item.value for item in known], float)
    return _drawn(cost, value, "cost of a trial", "value")


def _drawn(cost: np.ndarray, value: np.ndarray, xlabel: str, ylabel: str) -> Figure:
    order = np.lexsort((value, cost))
    lowest = np.minimum.accumulate(value[order])
    best = order[np.r_[True, lowest[1:] < lowest[:-1]]]
    figure, axes = single()
    axes.set(xscale=scale_of(cost), yscale=scale_of(value), xlabel=xlabel, ylabel=ylabel)
    axes.scatter(cost, value, s=22, color=COLOURS[0], alpha=0.6, label="trials")
    axes.step(cost[best], value[best], where="post", color=BEST, marker="o", label="Pareto front")
    readable(axes.xaxis)
    readable(axes.yaxis)
    axes.legend(frameon=False)
    return figure
