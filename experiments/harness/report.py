"""The page that an experiment leaves behind."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.harness.context import Context
from strategies.page import cell, document, picture, table, write_atomically


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
        parts.append(picture(path.stem, path.read_bytes()))
    for name, rows in results["tables"].items():
        escaped = [{html.escape(k): cell(v) for k, v in row.items()} for row in rows]
        parts += [f"<h2>{html.escape(name)}</h2>", table(escaped)]
    about = {key: results[key] for key in ("command", "date", "commit", "machine", "seconds")}
    facts = {**results["settings"], **about, **results["versions"]}
    listed = [{"setting": html.escape(k), "value": cell(v)} for k, v in facts.items()]
    parts += ["<h2>Settings</h2>", table(listed)]
    page = context.options.out / "index.html"
    write_atomically(page, document(context.name, parts))
    return page
