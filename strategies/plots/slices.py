"""The value against one hyperparameter at a time, with the gradients that were seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from strategies.plots.columns import Column, columns, present
from strategies.plots.style import BEST, FAILED, GRADES, panels, readable, scale_of
from strategies.searched import Searched, searched
from strategies.space import SearchSpace

#: Half the width of a slope, and the most of half its height, in parts of the axes.
_REACH, _RISE = 0.035, 0.08


def slices(
    source: Any,
    space: SearchSpace | Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Figure:
    """Value against each hyperparameter; where a trial reported a gradient, its slope.

    Later trials are darker, the best one has a ring. Trials that do not have a hyperparameter are
    not in its panel; failed ones are crosses at the lower edge.

    **Arguments:**

    - `source`, `space`: see `strategies.searched.searched`. Complete trials are shown, at the
      largest resource that four have.
    - `names`: hyperparameters, by path or by entry (`"l2[0]"`). Default: all, arrays of more than
      four entries by their mean; the slope then is that of moving all entries together.
    """
    seen = searched(source, space)
    shown = columns(seen.space, names)
    figure, found = panels(len(shown))
    scale = scale_of(seen.values)
    for axes, column in zip(found, shown, strict=True):
        axes.set_yscale(scale)
        _slice(axes, seen, column)
        column.dress(axes)
        readable(axes.yaxis)
        axes.set_ylabel("value")
    return figure


def _slice(axes: Axes, seen: Searched, column: Column) -> None:
    there = present(column, seen.complete)
    order = np.array([item.number or 0 for item in seen.complete], float)
    if there.any():
        places, values = column.places(seen.units)[there], seen.values[there]
        x = column.natural(places)
        axes.scatter(x, values, c=order[there], cmap=GRADES, s=18, zorder=3)
        if column.smooth:
            slopes = column.slopes(seen.slopes)[there]
            axes.add_collection(_segments(axes, column, places, values, slopes, seen.values))
        best = seen.ranking[0]
        if there[best]:
            at = column.natural(column.places(seen.units[best][None]))
            axes.scatter(at, seen.values[best], s=90, facecolors="none", edgecolors=BEST, zorder=4)
    failed = [item for item in seen.history if item.status == "failed"]
    failed = [item for item, has in zip(failed, present(column, failed), strict=True) if has]
    if failed:
        x = column.natural(column.places(np.stack([item.unit for item in failed])))
        axes.scatter(
            x,
            [0.02] * len(x),
            transform=axes.get_xaxis_transform(),
            marker="x",
            s=20,
            color=FAILED,
            clip_on=False,
        )


def _segments(
    axes: Axes,
    column: Column,
    places: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    everything: np.ndarray,
) -> LineCollection:
    """A straight piece of the tangent through each point that has a slope."""
    log = axes.get_yscale() == "log"
    height = np.log(everything) if log else everything
    span = float(np.ptp(height)) or 1.0
    rate = slopes / values if log else slopes
    known = np.flatnonzero(np.isfinite(rate))
    reach = np.minimum(_REACH, _RISE * span / np.maximum(np.abs(rate[known]), 1e-300))
    lines = []
    for i, half in zip(known, reach, strict=True):
        x = column.natural(np.array([places[i] - half, places[i] + half]))
        y = np.array([-half, half]) * rate[i]
        lines.append(np.c_[x, values[i] * np.exp(y) if log else values[i] + y])
    return LineCollection(lines, colors="#444444", linewidths=1.0, zorder=2)
