"""All hyperparameters side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from strategies.plots.columns import Column, columns, present
from strategies.plots.style import BEST, scale_of, shortened, single
from strategies.searched import searched
from strategies.space import SearchSpace

#: Where a hyperparameter that a configuration does not have is drawn.
_ABSENT = -0.12
#: Choices with a label of their own beside the axis.
_LABELS = 10
#: Small values are dark.
_GOOD = "viridis"


def parallel(
    source: Any,
    space: SearchSpace | Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Figure:
    """A line for each trial through its hyperparameters' values; good trials are dark.

    A line dips below an axis whose hyperparameter the trial does not have.

    **Arguments:**

    - `source`, `space`, `names`: as for `slices`.
    """
    seen = searched(source, space)
    shown = columns(seen.space, names)
    figure, axes = single(max(1.6 * len(shown) + 2.0, 5.0), 4.2)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    places = np.full((len(seen.complete), len(shown)), _ABSENT)
    for k, column in enumerate(shown):
        there = present(column, seen.complete)
        if there.any():
            places[there, k] = column.places(seen.units[there])
    x = np.arange(len(shown), dtype=float)
    if len(seen.complete):
        norm: Normalize = Normalize(seen.values.min(), seen.values.max())
        if scale_of(seen.values) == "log":
            norm = LogNorm(seen.values.min(), seen.values.max())
        # The best on top.
        order = seen.ranking[::-1]
        lines = [np.c_[x, places[i]] for i in order]
        if len(shown) == 1:  # a line of one point is none
            axes.scatter(
                np.zeros(len(order)), places[order, 0], c=seen.values[order], norm=norm, cmap=_GOOD
            )
        axes.add_collection(
            LineCollection(lines, array=seen.values[order], norm=norm, cmap=_GOOD, alpha=0.75)
        )
        axes.plot(x, places[order[-1]], color=BEST, linewidth=2.2, label="best")
        figure.legend(frameon=False, loc="outside lower right")
        mappable = ScalarMappable(norm, _GOOD)
        figure.colorbar(mappable, ax=axes, label="value", pad=0.02)
    for k, column in enumerate(shown):
        _axis(axes, k, column)
    if (places == _ABSENT).any():
        axes.text(-0.12, _ABSENT, "absent", ha="right", va="center", fontsize=8, color="#666666")
    axes.set_xlim(-0.5, len(shown) - 0.4)
    axes.set_ylim(_ABSENT - 0.05, 1.05)
    axes.set_yticks([])
    axes.set_xticks(x, [shortened(column.name) for column in shown], rotation=0)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    return figure


def _axis(axes: Any, k: int, column: Column) -> None:
    """A vertical line with what is at its places."""
    axes.plot([k, k], [0, 1], color="#444444", linewidth=1)
    if column.labels is None:
        places = np.array([0.0, 0.5, 1.0])
        marks = [f"{value:.3g}" for value in column.natural(places)]
    else:
        step = -(-len(column.labels) // _LABELS)
        places = np.arange(0, len(column.labels), step) / max(len(column.labels) - 1, 1)
        marks = column.labels[::step]
    for place, mark in zip(places, marks, strict=True):
        axes.text(
            k + 0.04,
            place,
            mark,
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            zorder=5,
        )
