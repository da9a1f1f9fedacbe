"""Timing on a machine that others use too, and the form in which benchmarks leave their results."""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, the functions taken in turn.

    Taken in turn, they meet the same disturbances, so that the ratio of two calls of one round is
    meaningful where the times themselves are not.

    **Arguments:**

    - `functions`: by name; each does one unit of work and returns its arrays.
    - `repeats`: rounds.
    - `warmup`: calls of each before the first round (compilation).
    - `clock`: `time.process_time` measures the work of all threads and not the waiting, which is
      what can be measured on a busy machine.
    """
    for function in functions.values():
        for _ in range(warmup):
            jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            jax.block_until_ready(function())
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """Median over the rounds of the time of `name` relative to that of `reference`."""
    pairs = zip(seconds[name], seconds[reference], strict=True)
    return median(a / b for a, b in pairs)


def compile_seconds(
    function: Callable, *args: Any, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Seconds (of that clock) to trace, lower and compile, and the compiled program."""
    start = clock()
    compiled = jax.jit(function).lower(*args).compile()
    return clock() - start, compiled


def peak_bytes(compiled: Any) -> int:
    """Bytes that a compiled program needs at its peak: arguments, results and intermediates."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def options(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have: `--quick`, `--cpu-time` and `--out`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--cpu-time",
        dest="clock",
        action="store_const",
        const=time.process_time,
        default=time.perf_counter,
        help="measure processor time, for a machine that is busy with other things",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for JSON and PNG")
    return parser


def report(
    name: str, rows: Sequence[Mapping[str, Any]], bounded: Mapping[str, float], out: Path | None
) -> None:
    """Print a table; with `out`, save it as `NAME.json` and draw the bounded columns.

    **Arguments:**

    - `name`: of the benchmark.
    - `rows`: of the table; the first two columns name the row.
    - `bounded`: columns that ought to be at most so much.
    - `out`: folder.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    for line in ([columns], [["-" * width for width in widths]], cells):
        for row in line:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "bounds": dict(bounded),
        "rows": [dict(row) for row in rows],
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
    }
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    _draw(name, rows, columns[:2], bounded, out)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _draw(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    bounded: Mapping[str, float],
    out: Path,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(bounded) + 2, 0.4 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots(1, len(bounded), squeeze=False, sharey=True)[0]
    names = [" ".join(str(row[label]) for label in labels) for row in rows]
    for axis, (column, bound) in zip(axes, bounded.items(), strict=True):
        values = [row.get(column) or 0.0 for row in rows]
        axis.barh(names, values)
        axis.axvline(bound, color="black", linestyle="--", linewidth=1)
        axis.set_xlabel(column)
    axes[0].invert_yaxis()
    figure.savefig(out / f"{name}.png", dpi=150)
