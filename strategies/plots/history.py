"""The values of all trials, in their order."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from strategies.observation import Observation
from strategies.plots.style import BEST, COLOURS, FAILED, readable, scale_of, single, whole
from strategies.searched import searched
from strategies.space import SearchSpace

#: Rungs with a colour of their own.
_RUNGS = 6


def history(source: Any, space: SearchSpace | Mapping[str, Any] | None = None) -> Figure:
    """Value against trial number, with the best so far.

    Results of a trial at several resources are joined by a line, each resource in its colour; the
    best so far is that at the largest, of feasible trials. Points that were not suggested come
    before trial 0. Failed trials are crosses at the lower edge, pruned ones are hollow.
    """
    seen = searched(source, space)
    given = sum(item.number is None for item in seen.history)
    places, before = [], -given
    for item in seen.history:
        places.append(before if item.number is None else item.number)
        before += item.number is None
    values = np.array(
        [np.nan if o.value is None or o.status == "failed" else o.value for o in seen.history],
        float,
    )
    figure, axes = single()
    axes.set_yscale(scale_of(values))
    _join_rungs(axes, places, values)
    for label, colour, rows in _by_resource(seen.history):
        for status, face in (("complete", colour), ("pruned", "none")):
            shown = [i for i in rows if seen.history[i].status == status]
            if shown:
                axes.scatter(
                    [places[i] for i in shown],
                    values[shown],
                    s=22,
                    facecolors=face,
                    edgecolors=colour,
                    label=label + (" (pruned)" if status == "pruned" else ""),
                    zorder=3,
                )
    failed = [i for i, item in enumerate(seen.history) if item.status == "failed"]
    if failed:
        axes.scatter(
            [places[i] for i in failed],
            [0.015] * len(failed),
            transform=axes.get_xaxis_transform(),
            marker="x",
            color=FAILED,
            label="failed",
            clip_on=False,
        )
    chosen = {id(item) for item in seen.complete if item.feasible}
    best = [
        value if id(item) in chosen else np.inf
        for value, item in zip(values, seen.history, strict=True)
    ]
    order = np.argsort(places, kind="stable")
    line = np.minimum.accumulate(np.array(best, float)[order]) if best else np.empty(0)
    line[np.isinf(line)] = np.nan
    if np.isfinite(line).any():
        axes.step(
            np.array(places)[order], line, where="post", color=BEST, label="best so far", zorder=2
        )
    axes.set(xlabel="trial", ylabel="value")
    whole(axes.xaxis)
    readable(axes.yaxis)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, loc="outside right upper")
    return figure


def _join_rungs(axes: Any, places: list[int], values: np.ndarray) -> None:
    by_trial: dict[int, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        by_trial[place].append(i)
    for place, rows in by_trial.items():
        if len(rows) > 1:
            axes.plot([place] * len(rows), values[rows], color="#999999", linewidth=0.8, zorder=1)


def _by_resource(items: tuple[Observation, ...]) -> list[tuple[str, str, list[int]]]:
    """Labels, colours and rows: one of each, or one for each resource if there are a few."""
    levels = sorted({item.resource for item in items if item.resource is not None})
    if not 1 < len(levels) <= _RUNGS:
        return [("trial", COLOURS[0], list(range(len(items))))]
    found = [
        (f"at {level:g}", COLOURS[k], [i for i, o in enumerate(items) if o.resource == level])
        for k, level in enumerate(reversed(levels))
    ]
    rest = [i for i, item in enumerate(items) if item.resource is None]
    return found + ([("without resource", COLOURS[-1], rest)] if rest else [])
