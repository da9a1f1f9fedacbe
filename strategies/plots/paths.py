"""How hyperparameters moved while something trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from strategies.arguments import finite, several
from strategies.plots.style import COLOURS, panels, readable, scale_of, shortened, whole

#: Members of a population with a name in the legend.
_NAMED = 8


def paths(
    members: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[Mapping[str, Any]],
    *,
    steps: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """The schedule of every hyperparameter that a training went through.

    For self-tuning networks, population-based training, or the history of an outer algorithm: a
    panel for each hyperparameter, a line for each member; of an array a line for each entry.
    Hyperparameters that are not there at a step leave a gap; what is no number has its choices on
    the axis.

    **Arguments:**

    - `members`: what each member was trained with, a mapping (nested or flat) a step; or that of
      the only one, such as the `history` of `hypergrad.outer.run`.
    - `steps`: places on the axis, of the longest member. Default: 0, 1, 2, ...
    - `names`: what to show, by path. Default: all.

    **Raises:** `ValueError` if there is nothing to show, or a name is not there.
    """
    if not isinstance(members, Mapping):
        members = {"": members}
    flat = {
        str(label): [_flat(row) for row in several("members", rows, "steps of each member")]
        for label, rows in members.items()
    }
    if names is not None:
        names = several("names", names, "names of hyperparameters")
    known = list(dict.fromkeys(path for rows in flat.values() for row in rows for path in row))
    for name in names or ():
        if name not in known:
            raise ValueError(f"'names': expected some of {known}, received {name!r}")
    shown = known if names is None else list(names)
    if not shown:
        raise ValueError("'members': expected steps with hyperparameters, received none")
    longest = max(len(rows) for rows in flat.values())
    if steps is not None:
        steps = [finite("steps", step) for step in several("steps", steps, "numbers")]
        if len(steps) < longest:
            raise ValueError(f"'steps': expected {longest} numbers, received {len(steps)}")
    figure, found = panels(len(shown))
    for axes, name in zip(found, shown, strict=True):
        labels: list[str] = []
        drawn = []
        for k, (label, rows) in enumerate(flat.items()):
            entries = _numbers([row.get(name) for row in rows], labels)
            x = np.arange(len(rows)) if steps is None else np.asarray(steps)[: len(rows)]
            axes.plot(
                x,
                entries,
                color=COLOURS[k % len(COLOURS)],
                label=label or None,
                linewidth=1.2,
                alpha=1.0 if entries.shape[1] == 1 else 0.6,
                marker="o" if len(rows) == 1 else None,
                drawstyle="steps-post",
            )
            drawn.append(entries.ravel())
        if labels:
            axes.set_yticks(range(len(labels)), [shortened(label) for label in labels])
        else:
            axes.set_yscale(scale_of(np.concatenate(drawn)))
            readable(axes.yaxis)
        axes.set(xlabel="step", title=shortened(name, 30))
        if steps is None:
            whole(axes.xaxis)
    if 1 < len(flat) <= _NAMED:
        handles, texts = found[0].get_legend_handles_labels()
        named = dict(zip(texts, handles, strict=True))
        figure.legend(named.values(), named, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise ValueError(f"'members': expected a mapping for each step, received {tree!r:.80}")
    found: dict[str, Any] = {}
    for key, leaf in tree.items():
        if isinstance(leaf, Mapping):
            found.update(_flat(leaf, f"{prefix}{key}/"))
        else:
            found[f"{prefix}{key}"] = leaf
    return found


def _numbers(values: Sequence[Any], labels: list[str]) -> np.ndarray:
    """A row a step, a column an entry; choices become their positions in `labels`."""
    rows = []
    for value in values:
        try:
            rows.append(np.ravel(np.asarray(np.nan if value is None else value, float)))
        except (TypeError, ValueError):
            text = str(value)
            if text not in labels:
                labels.append(text)
            rows.append(np.array([float(labels.index(text))]))
    width = max(len(row) for row in rows) if rows else 1
    return np.array([row if len(row) == width else np.full(width, np.nan) for row in rows])
