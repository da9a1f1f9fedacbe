"""The value over two hyperparameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from strategies.importance import importance, surface
from strategies.plots.columns import Column, columns, present
from strategies.plots.style import BEST, readable, single
from strategies.searched import Searched, searched
from strategies.space import SearchSpace

#: Cells along a continuous axis.
_CELLS = 24


def contours(
    source: Any,
    space: SearchSpace | Mapping[str, Any] | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
) -> Figure:
    """What the Gaussian process expects over two hyperparameters, averaged over all others.

    The trials are dots at their place, the best one has a ring. With fewer than four complete
    trials there is no process, and the dots are alone. Of hundreds of choices those are shown that
    trials had, and some more.

    **Arguments:**

    - `source`, `space`: as for `slices`.
    - `x`, `y`: the two, by path or by entry (`"l2[0]"`). Default: those of the largest importance.

    **Raises:** `ValueError` for a name that is not there, and for a space with one axis.
    """
    seen = searched(source, space).narrowed()
    across, up = _axes(seen, x, y)
    figure, axes = single(5.6, 4.4)
    axes.grid(visible=False)
    cells = [_cells(column) for column in (across, up)]
    if (mean := surface(seen, [across.coordinates, up.coordinates], cells)) is not None:
        at = [column.natural(_places(column)) for column in (across, up)]
        mesh = axes.pcolormesh(*at, mean.T, cmap="viridis", shading="nearest")
        figure.colorbar(mesh, ax=axes, label="expected value")
        if across.labels is None and up.labels is None:
            axes.contour(*at, mean.T, colors="white", linewidths=0.6, alpha=0.7)
    there = present(across, seen.complete) & present(up, seen.complete)
    if there.any():
        dots = across.natural(across.places(seen.units[there]))
        heights = up.natural(up.places(seen.units[there]))
        axes.scatter(dots, heights, s=16, color="white", edgecolors="black", linewidths=0.7)
        if there[seen.ranking[0]]:
            best = int(there[: seen.ranking[0]].sum())
            axes.scatter(
                dots[best], heights[best], s=110, facecolors="none", edgecolors=BEST, linewidths=2
            )
    across.dress(axes, "x")
    up.dress(axes, "y")
    readable(axes.xaxis)
    return figure


def _axes(seen: Searched, x: str | None, y: str | None) -> tuple[Column, Column]:
    """The columns named, and the most important ones in the place of the others."""
    given = [None if name is None else columns(seen.space, [name])[0] for name in (x, y)]
    try:
        order = list(importance(seen))
    except ValueError:  # too few trials
        order = list(seen.space.domains)
    known = columns(seen.space)
    found = list(given)
    for i, column in enumerate(given):
        if column is None:
            others = [other for other in found if other is not None]
            free = [c for c in known if all(c.name != other.name for other in others)]
            # Another entry of the same array tells less than another hyperparameter.
            same = {other.path for other in others}
            free.sort(key=lambda c: (c.path in same, order.index(c.path)))
            found[i] = free[0] if free else None
    if found[0] is None or found[1] is None:
        raise ValueError(f"'space': expected two axes, received {[c.name for c in known]}")
    return found[0], found[1]


def _places(column: Column) -> np.ndarray:
    count = _CELLS if column.labels is None else len(column.labels)
    if column.labels is None and column.domain.count < count:
        count = int(column.domain.count)
        return (np.arange(count) + 0.5) / count
    return np.linspace(0.0, 1.0, count)


def _cells(column: Column) -> np.ndarray:
    """Unit coordinates of the places, shape `(count, coordinates)`."""
    places = _places(column)
    if len(column.coordinates) == 1:
        return places[:, None]
    if column.labels is not None:
        return np.eye(len(places))
    return np.repeat(places[:, None], len(column.coordinates), 1)
