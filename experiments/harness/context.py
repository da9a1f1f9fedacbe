"""What a running experiment is given: its options, and where progress and results go."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from experiments.harness.drawing import draw
from experiments.harness.record import plain
from strategies.page import format_cell


@dataclass(frozen=True)
class Curve:
    """A named series: `y` over `x`, and optionally a band from `low` to `high`."""

    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None

    @classmethod
    def of_runs(cls, runs: ArrayLike, x: ArrayLike | None = None) -> "Curve":
        """Median and quartiles over several runs.

        **Arguments:**

        - `runs`: shape `(runs, steps)`.
        - `x`: shape `(steps,)`; 1, 2, 3, ... by default.
        """
        runs = np.asarray(runs, dtype=float)
        low, middle, high = np.quantile(runs, [0.25, 0.5, 0.75], axis=0)
        return cls(np.arange(1, runs.shape[1] + 1) if x is None else x, middle, low, high)


class Progress:
    """One bar: `advance` it after each step."""

    def __init__(self, display: rich_progress.Progress, title: str, total: int) -> None:
        self._display = display
        self._task = display.add_task(title, total=total, incumbent="")

    def advance(self, steps: int = 1, *, incumbent: float | None = None) -> None:
        """Move on by `steps`, and show the best value so far, if given."""
        shown = {} if incumbent is None else {"incumbent": f"best {incumbent:.5g}"}
        self._display.update(self._task, advance=steps, **shown)


class Context:
    """The run: `options`, and the calls by which it reports.

    - `options`: the experiment's own, and `quick`, `seed`, `out`.
    - `console`: rich's, for anything that should be printed above the progress bar.
    """

    def __init__(self, name: str, options: argparse.Namespace, known_claims: set[str]) -> None:
        self.name = name
        self.options = options
        self.console = Console()
        self.measured: dict[str, float] = {}
        self.plots: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.figures: list[Path] = []
        self.findings: list[str] = []
        self._known_claims = known_claims
        options.out.mkdir(parents=True, exist_ok=True)
        self._display = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[incumbent]}"),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=300,
        )

    def __enter__(self) -> "Context":
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        """A bar for `total` steps, with incumbent, elapsed time and time left."""
        yield Progress(self._display, title, total)

    def say(self, finding: str) -> None:
        """A sentence for the terminal and for the page."""
        self.findings.append(finding)
        self.console.print(finding, highlight=False)

    def measure(self, claim: str, value: float) -> None:
        """What was measured for the claim of that key.

        **Raises:** `ValueError` if no such claim was declared.
        """
        if claim not in self._known_claims:
            raise ValueError(f"No claim {claim!r}; declared: {sorted(self._known_claims)}.")
        self.measured[claim] = float(value)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep a table and print it. All rows have the keys of the first, in its order."""
        self.tables[name] = [dict(row) for row in rows]
        shown = Table(title=name)
        for column in rows[0]:
            shown.add_column(
                column, justify="left" if isinstance(rows[0][column], str) else "right"
            )
        for row in rows:
            shown.add_row(*(format_cell(row[column]) for column in rows[0]))
        self.console.print(shown)

    def plot(
        self,
        name: str,
        curves: Mapping[str, Curve],
        *,
        x: str,
        y: str,
        x_scale: str = "linear",
        y_scale: str = "linear",
        title: str = "",
    ) -> None:
        """Keep the curves and draw them, bands shaded, into `name.png`.

        **Arguments:**

        - `curves`: a `Curve` for each line of the legend.
        - `x`, `y`: the axes' labels, with units.
        - `x_scale`, `y_scale`: `"linear"` or `"log"`.
        """
        series = {
            label: {key: values for key, values in asdict(curve).items() if values is not None}
            for label, curve in curves.items()
        }
        self.plots[name] = plain(
            {
                "curves": series,
                "x": x,
                "y": y,
                "x_scale": x_scale,
                "y_scale": y_scale,
                "title": title,
            }
        )
        with self.figure(name) as figure:
            draw(figure, self.plots[name])

    @contextmanager
    def figure(self, name: str, *, width: float = 6.4, height: float = 4.0) -> Iterator[Figure]:
        """A matplotlib figure (inches) to draw on, written to `name.png` at the end."""
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path = self.options.out / f"{name}.png"
        figure.savefig(path, dpi=144)
        self.figures.append(path)

    def print_claims(self, claims: Sequence[Mapping[str, Any]]) -> None:
        """The claims, and whether each holds."""
        if not claims:
            return
        shown = Table(title="claims")
        for column in ("", "claim", "measured", "bound"):
            shown.add_column(column)
        for claim in claims:
            mark = "[green]holds[/]" if claim["holds"] else "[bold red]FAILS[/]"
            shown.add_row(mark, claim["claim"], format_cell(claim["measured"]), claim["bound"])
        self.console.print(shown)
