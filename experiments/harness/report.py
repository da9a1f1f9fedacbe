"""`results.json` and the page: what an experiment leaves behind."""

import base64
import html
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.context import Context, format_cell

DISTRIBUTIONS = (
    "hypergrad-engine",
    "jax",
    "numpy",
    "equinox",
    "optax",
    "scikit-learn",
    "optuna",
    "ray",
)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #0a7d4f; --bad: #c2352b }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left }
img { max-width: 100%; background: #fff; border-radius: 4px; margin: .5rem 0 }
.holds { color: var(--good) } .fails { color: var(--bad); font-weight: bold }
pre { white-space: pre-wrap }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff7b72 } }
"""


def write_results(
    context: Context, paper: str, seconds: float, claims: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write `results.json` and return what it holds. Numbers that are not finite become null."""
    curves = {
        group: {
            label: {key: series for key, series in asdict(curve).items() if series is not None}
            for label, curve in curves.items()
        }
        for group, curves in context.curves.items()
    }
    results = plain(
        {
            "experiment": context.name,
            "paper": paper,
            "settings": vars(context.options),
            "versions": versions(),
            "seconds": round(seconds, 2),
            "curves": curves,
            "tables": context.tables,
            "findings": context.findings,
            "claims": list(claims),
        }
    )
    text = json.dumps(results, indent=1, allow_nan=False)
    write_atomically(context.options.out / "results.json", text)
    return results


def write_page(context: Context, description: str, results: Mapping[str, Any]) -> Path:
    """Write the self-contained page and return its path."""
    title, _, body = description.partition("\n")
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(p)}</p>" for p in body.strip().split("\n\n") if p]
    parts.append(f"<p>Paper: {html.escape(results['paper'])}.</p>")
    if results["claims"]:
        rows = [
            {
                "": '<span class="holds">holds</span>'
                if claim["holds"]
                else '<span class="fails">fails</span>',
                **{k: cell(claim[k]) for k in ("claim", "measured", "bound")},
            }
            for claim in results["claims"]
        ]
        parts += ["<h2>Claims</h2>", table(rows)]
    parts += [f"<p>{html.escape(finding)}</p>" for finding in results["findings"]]
    for path in context.figures:
        picture = base64.b64encode(path.read_bytes()).decode()
        name = html.escape(path.stem)
        parts.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{picture}">')
    for name, rows in results["tables"].items():
        escaped = [{html.escape(k): cell(v) for k, v in row.items()} for row in rows]
        parts += [f"<h2>{html.escape(name)}</h2>", table(escaped)]
    facts = {**results["settings"], **results["versions"], "seconds": results["seconds"]}
    listed = [{"setting": html.escape(k), "value": cell(v)} for k, v in facts.items()]
    parts += ["<h2>Settings</h2>", table(listed)]
    page = context.options.out / "index.html"
    write_atomically(
        page,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(context.name)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n",
    )
    return page


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f"<th>{column}</th>" for column in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{v}</td>' for v in row.values())}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def cell(value: Any) -> str:
    """A value as HTML text."""
    return html.escape(format_cell(value))


def versions() -> dict[str, str]:
    """Python, machine, and the packages that are installed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {cores} cores",
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Nested values as JSON knows them: lists for arrays, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name and rename, so that no half-written file is ever seen."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
