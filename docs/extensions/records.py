"""A Markdown extension: the tables, pictures and numbers of `records/`, put into the pages.

A page writes, anywhere in its text:

    {{ record hoag table "validation loss" method seconds }}   a table, of these columns or of all
    {{ record hoag picture one_loss }}                         a plot, drawn from its numbers
    {{ record hoag claims }}                                   claims, what was measured, the bounds
    {{ record hoag measured grid }}                            what was measured for one claim
    {{ record hoag value "validation loss" adaptive seconds }} a cell; the row by its first column
    {{ record hoag run }}                                      command, time, machine, date
    {{ record benchmarks/overhead table overhead }}            of a benchmark

What is not in the record fails the build. Pictures lie within the page.
"""

import base64
import io
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from matplotlib.figure import Figure
from PIL import Image

from experiments.harness import record
from experiments.harness.drawing import draw
from strategies.page import format_cell

# A plot has few colours, and a page shows twenty of them.
DPI, PALETTE = 110, 64

MARKER = re.compile(r"\{\{ record (.+?) \}\}")


class Records(Extension):
    """Registers the markers."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """See `markdown.Extension`."""
        # Before fenced code (25), so that a marker may stand there, too.
        md.preprocessors.register(_Markers(md), "records", 30)


class _Markers(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return render("\n".join(lines)).split("\n")


def makeExtension(**options: object) -> Records:  # noqa: N802
    """What Python-Markdown calls."""
    return Records(**options)


def render(markdown: str) -> str:
    """The text of a page with its markers replaced.

    **Raises:** `ValueError` that names the marker, if the record does not hold what is asked.
    """

    def replaced(match: re.Match[str]) -> str:
        name, what, *arguments = shlex.split(match[1])
        kind, _, name = name.rpartition("/")
        try:
            run = record.read(kind or "experiments", name)
            return found(PARTS, what)(run, *arguments)
        except (LookupError, OSError, TypeError) as error:
            raise ValueError(f"{match[0]}: {error}") from error

    return MARKER.sub(replaced, markdown)


def picture(run: Mapping[str, Any], name: str) -> str:
    """A plot of the record, drawn, or a picture beside it; within the page."""
    files = {Path(file).stem: file for file in run["pictures"]}
    if name in run["plots"]:
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        draw(figure, run["plots"][name])
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=DPI)
    else:
        file = found(files | dict.fromkeys(run["plots"], ""), name)
        written = io.BytesIO((record.RECORDS / run["kind"] / run["name"] / file).read_bytes())
    small = io.BytesIO()
    Image.open(written).convert("RGB").quantize(PALETTE).save(small, format="png", optimize=True)
    data = base64.b64encode(small.getvalue()).decode()
    label = f"{run['name']}: {name}"
    return f'<img class="record" alt="{label}" src="data:image/png;base64,{data}">'


def table(run: Mapping[str, Any], name: str, *columns: str) -> str:
    """A table of the record under its name."""
    rows = found(run["tables"], name)
    present = dict.fromkeys(column for row in rows for column in row)
    for column in columns:
        found(present, column)
    chosen = columns or tuple(present)
    body = [[row.get(column) for column in chosen] for row in rows]
    return f"*{name}*\n\n{markdown_table(chosen, body)}"


def claims(run: Mapping[str, Any]) -> str:
    """All claims, and whether they hold."""
    rows = [
        [
            claim["claim"],
            claim["measured"],
            f"`{claim['bound']}`",
            "holds" if claim["holds"] else "**fails**",
        ]
        for claim in run["claims"]
    ]
    return markdown_table(("claim", "measured", "bound", ""), rows)


def measured(run: Mapping[str, Any], key: str) -> str:
    """What was measured for a claim."""
    return cell(found({claim["key"]: claim for claim in run["claims"]}, key)["measured"])


def value(run: Mapping[str, Any], name: str, row: str, column: str) -> str:
    """A cell of a table."""
    rows = {cell(next(iter(r.values()))): r for r in found(run["tables"], name)}
    return cell(found(found(rows, row), column))


def how(run: Mapping[str, Any]) -> str:
    """How the run was made."""
    made = run["versions"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("python", "jax", "numpy"))
    small = " **This is the small run, `--quick`.**" if run["settings"].get("quick") else ""
    return (
        f"`{run['command']}`: {run['seconds']:.0f} seconds on {run['machine']} ({versions}), "
        f"{run['date']}.{small}"
    )


PARTS: dict[str, Callable[..., str]] = {
    "picture": picture,
    "table": table,
    "claims": claims,
    "measured": measured,
    "value": value,
    "run": how,
}


def found(parts: Mapping[str, Any], name: str) -> Any:
    """`parts[name]`, or an error that lists the names there are."""
    if name not in parts:
        raise KeyError(f"no {name!r}; expected one of {list(parts)}")
    return parts[name]


def markdown_table(columns: tuple[str, ...], rows: list[list[Any]]) -> str:
    """A table in Markdown, numbers to the right."""
    sides = [
        "---:" if any(isinstance(row[i], int | float) for row in rows) else "---"
        for i in range(len(columns))
    ]
    lines = [columns, sides, *([cell(item) for item in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(item: Any) -> str:
    """A value as text of a table; nothing for null."""
    return "" if item is None else format_cell(item).replace("|", "\\|")
