"""Timing on a machine that others use too, and the form in which benchmarks leave their results."""

import argparse
import ast
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax

from experiments.harness import record

STARTED = time.perf_counter()


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
    parser.add_argument("--out", type=Path, default=None, help="folder for results.json")
    return parser


def report(
    name: str,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    bounded: Mapping[str, float],
    arguments: argparse.Namespace,
    claims: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print the tables and claims; with `--out`, leave the run's record as `results.json` there.

    **Arguments:**

    - `name`: of the benchmark, a module of this package.
    - `tables`: rows by the name of the table.
    - `bounded`: columns that ought to be at most so much.
    - `arguments`: of the command line, from `options`.
    - `claims`: checked, as `experiments.harness.experiment.Claim.check` returns them.
    """
    for rows in tables.values():
        show(rows)
    if claims:
        show(claims)
    if arguments.out is None:
        return
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "clock")}
    settings["clock"] = arguments.clock.__name__
    source = record.ROOT / "benchmarks" / f"{name}.py"
    words = [word for word in sys.argv[1:] if not word.startswith("--out")]
    if "--out" in sys.argv:
        words.remove(str(arguments.out))
    made = record.new(
        "benchmarks",
        name,
        title=(ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0],
        paper="ours",
        command=shlex.join(["python", "-m", f"benchmarks.{name}", *words]),
        settings={**settings, "device": jax.devices()[0].device_kind},
        seconds=round(time.perf_counter() - STARTED, 2),
        plots={},
        pictures=[],
        tables=tables,
        findings=[f"At most {bound:g} is wanted of `{key}`." for key, bound in bounded.items()],
        claims=claims,
    )
    record.write(made, arguments.out)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table, with the columns of all rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    for line in (columns, ["-" * width for width in widths], *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
