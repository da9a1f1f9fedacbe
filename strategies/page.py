"""Self-contained HTML pages: that of a search, and the parts that other pages are made of."""

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies.arguments import file_path, text
from strategies.front import front, knee
from strategies.importance import Share, importance
from strategies.searched import Searched, searched
from strategies.space import SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #0a7d4f; --bad: #c2352b }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left }
img { max-width: 100%; background: #fff; border-radius: 4px; margin: .5rem 0 }
.holds { color: var(--good) } .fails { color: var(--bad); font-weight: bold }
pre { white-space: pre-wrap } .trials td { white-space: nowrap }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff7b72 } }
"""

#: Rows of the table of trials, and hyperparameters with a panel of their own.
_TRIALS, _PANELS = 500, 12
#: Characters of a value in a table, such as a long array.
_WIDTH = 60


def report_page(
    source: Any,
    path: str | os.PathLike[str],
    space: SearchSpace | Mapping[str, Any] | None = None,
    *,
    title: str = "Search",
) -> Path:
    """Write what a search has seen as one HTML file, pictures included.

    The best configuration, the history, what mattered, slices with the gradients seen, parallel
    coordinates, the front between objectives or between value and cost, the brackets of a
    scheduler, and a table of the trials (the best 500, if there are more). Sections that need more
    trials than there are, are left out. Values are minimised: those of a study that maximises have
    the other sign.

    **Arguments:**

    - `source`: a result of `minimize`, a `Ledger` or whatever has one, a scheduler, an
      `optuna.Study`, or observations.
    - `path`: of the file; it is replaced as a whole. Its folder must exist.
    - `space`: of observations, or of a study; see `strategies.searched.searched`.
    - `title`: of the page, plain text.

    **Returns:** The path.

    **Raises:** `ImportError` with the line that installs matplotlib, if it is missing.
    """
    page, title = file_path("path", path), text("title", title)
    seen = searched(source, space)
    try:
        found = importance(seen)
    except ValueError:  # fewer trials than a process needs
        found = {}
    parts = [*_summary(seen), *_pictures(source, seen, found), *_trials(seen), *_space(seen)]
    write_atomically(page, document(title, [f"<h1>{html.escape(title)}</h1>", *parts]))
    return page


def _summary(seen: Searched) -> list[str]:
    counts = Counter(item.status for item in seen.history)
    told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none yet"
    gradients = sum(item.slope is not None for item in seen.history)
    feasible = sum(item.feasible for item in seen.history if item.status != "failed")
    limited = f", {feasible} feasible" if any(item.constraints for item in seen.history) else ""
    lines = [f"<p>Trials: {told}; {gradients} with a gradient{limited}.</p>"]
    if seen.best is None:
        return [*lines, "<p>No trial is complete.</p>"]
    assert seen.best.point is not None
    number = "given, not suggested" if seen.best.number is None else f"trial {seen.best.number}"
    rows = [
        {"hyperparameter": html.escape(name), "value": cell(value)}
        for name, value in seen.best.point.flat.items()
    ]
    best = "Best in the first objective" if len(seen.best.values) > 1 else "Best"
    heading = f"<h2>{best}: {cell(float(seen.best.value or 0.0))} ({number})</h2>"
    return [*lines, heading, table(rows), *_front(seen)]


def _front(seen: Searched) -> list[str]:
    """What several objectives have come to."""
    members = [item for item in front(seen.complete) if len(item.values) > 1]
    middle = knee(members)
    rows = [
        {
            "trial": "" if item.number is None else str(item.number),
            **{f"objective {i + 1}": cell(each) for i, each in enumerate(item.values)},
            "": "knee" if item is middle else "",
        }
        for item in members
    ]
    return ["<h2>Pareto front</h2>", table(rows)] if rows else []


def _pictures(source: Any, seen: Searched, found: dict[str, Share]) -> list[str]:
    from strategies import plots
    from strategies.plots.columns import columns
    from strategies.schedulers.base import Scheduler

    parts = []
    if seen.history:
        parts.append(picture("History", plots.history(seen)))
    if isinstance(source, Scheduler) and source.candidates:
        parts.append(picture("Brackets", plots.brackets(source)))
    if found:
        parts.append(picture("What mattered", plots.shares(found)))
    order = list(found) or list(seen.space.domains)
    axes = sorted(columns(seen.space), key=lambda column: order.index(column.path))[:_PANELS]
    names = [column.name for column in axes]
    if seen.complete:
        parts.append(picture("One hyperparameter at a time", plots.slices(seen, names=names)))
        parts.append(picture("All together", plots.parallel(seen, names=names)))
    if found and len(names) > 1:
        parts.append(picture("The two that mattered most", plots.contours(seen)))
    if any(len(item.values) > 1 and item.feasible for item in seen.complete):
        parts.append(picture("Two objectives", plots.front(seen)))
    elif len({o.cost for o in seen.history if o.status == "complete"} - {None}) > 1:
        parts.append(picture("Value and cost", plots.front(seen)))
    return parts


def _trials(seen: Searched) -> list[str]:
    items = list(seen.history)
    if len(items) > _TRIALS:
        chosen = sorted(items, key=lambda o: np.inf if o.value is None else o.value)[:_TRIALS]
        kept = {id(item) for item in chosen}
        items = [item for item in items if id(item) in kept]
    if not items:
        return []
    rows, objectives = [], max(len(item.values) for item in items)
    for item in items:
        assert item.point is not None
        row: dict[str, Any] = {
            "trial": "" if item.number is None else item.number,
            "value": item.value,
            "status": item.status if item.feasible else f"{item.status}, infeasible",
        }
        for i in range(1, objectives):
            row[f"objective {i + 1}"] = item.values[i] if i < len(item.values) else None
        for name in ("resource", "cost"):
            if any(getattr(other, name) is not None for other in items):
                row[name] = getattr(item, name)
        row |= {path: item.point.flat.get(path) for path in seen.space.domains}
        rows.append(
            {html.escape(name): "" if value is None else cell(value) for name, value in row.items()}
        )
    return ["<h2>Trials</h2>", f'<div class="trials">{table(rows)}</div>']


def _space(seen: Searched) -> list[str]:
    lines = [
        {"hyperparameter": html.escape(name), "domain": cell(text)}
        for name, text in seen.space.describe().items()
    ]
    return ["<h2>Space</h2>", table(lines)]


# The parts of pages


def document(title: str, parts: Sequence[str]) -> str:
    """A page of parts that are HTML already; the title is plain text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def picture(name: str, drawn: "Figure | bytes") -> str:
    """A heading and a picture, a figure or the content of a PNG file."""
    if not isinstance(drawn, bytes):
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=110)
        drawn = buffer.getvalue()
    encoded, name = base64.b64encode(drawn).decode(), html.escape(name)
    return f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{encoded}">'


def table(rows: Sequence[dict[str, str]]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f"<th>{column}</th>" for column in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{v}</td>' for v in row.values())}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def cell(value: Any) -> str:
    """A value as HTML text."""
    return html.escape(format_cell(value))


def format_cell(value: Any) -> str:
    """A number with four digits, lists of numbers likewise, anything else as it prints."""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, list) and value:
        text = f"[{', '.join(format_cell(item) for item in value)}]"
        return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
    return str(value)


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name and rename, so that no half-written file is ever seen."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


__all__ = ["cell", "document", "format_cell", "picture", "report_page", "table", "write_atomically"]
