"""An attribution as a page: for each query, the examples that help and that harm it most."""

import base64
import html
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from hypergrad.data.attribution import Attribution
from hypergrad.data.trained import check_count
from hypergrad.expected import require

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
section { border-top: 1px solid #8888; padding: .6em 0 }
.row { display: flex; flex-wrap: wrap; gap: .8em; margin: .4em 0 }
figure { margin: 0; max-width: 16em; overflow-wrap: anywhere }
figcaption { font-size: 85% }
img { height: 72px; image-rendering: pixelated }
.help { color: #0072b2 } .harm { color: #b24a00 }
"""
# What is written of an example that is no picture.
_CHARACTERS = 300


def attribution_page(
    found: Attribution,
    path: str | Path,
    examples: Any,
    queries: Any,
    *,
    shown: int = 5,
    most_queries: int = 50,
    render: Callable[[Any], str] | None = None,
    captions: Sequence[Any] | None = None,
    title: str = "What the training examples do",
) -> None:
    """Write one HTML file, which needs no other: each query with its examples.

    **Arguments:**

    - `found`: from `attribute`.
    - `path`: of the file.
    - `examples`, `queries`: what to show of each, `n` and `m` of them: an array of pictures
      (`(n, height, width)` or `(n, height, width, 3)`; values from 0 to 1, or bytes), a list of
      texts, a data frame, rows of numbers.
    - `shown`: how many of the most helpful and of the most harmful examples. Default 5.
    - `most_queries`: those with the largest losses are shown first, so many of them.
    - `render`: `render(item) -> HTML` in place of the above. What it returns is not escaped.
    - `captions`: a text for each example in their order, its label for instance.
    - `title`: of the page.

    Above the queries come the examples that help and harm all of them in the mean.

    **Raises:** `ValueError` for another number of examples, queries or captions than attributed.
    """
    require("attribution_page", "found", found, Attribution, "attribute(...)")
    scores = np.asarray(found.scores, float)
    count, size = scores.shape
    for name, items, expected in (
        ("examples", examples, size),
        ("queries", queries, count),
        ("captions", captions, size),
    ):
        if items is not None and len(items) != expected:
            raise ValueError(f"{name}: expected {expected} of them, received {len(items)}.")
    shown = min(check_count("shown", shown), size)
    most_queries = check_count("most_queries", most_queries)
    draw = _drawn if render is None else render
    losses = np.asarray(found.losses, float)

    def figure(i: int, score: float) -> str:
        name = i if found.index is None else found.index[i]
        caption = "" if captions is None else f" · {html.escape(str(_item(captions, i)))}"
        text = f"{html.escape(str(name))}{caption}<br>{score:+.3g}"
        return f"<figure>{draw(_item(examples, i))}<figcaption>{text}</figcaption></figure>"

    def rows(row: np.ndarray) -> str:
        ranked = np.argsort(row, kind="stable")
        parts = []
        for kind, word, numbers in (
            ("help", "most helpful", [i for i in ranked[:shown] if row[i] < 0]),
            ("harm", "most harmful", [i for i in ranked[::-1][:shown] if row[i] > 0]),
        ):
            figures = "".join(figure(i, row[i]) for i in numbers)
            parts.append(f'<h3 class="{kind}">{word}</h3><div class="row">{figures}</div>')
        return "".join(parts)

    sections = [f"<section><h2>All {count} queries</h2>{rows(scores.mean(axis=0))}</section>"]
    for q in np.argsort(-losses, kind="stable")[:most_queries]:
        name = q if found.query_index is None else found.query_index[q]
        sections.append(
            f"<section><h2>Query {html.escape(str(name))}, loss {losses[q]:.3g}</h2>"
            f"{draw(_item(queries, q))}{rows(scores[q])}</section>"
        )
    note = (
        "<p>The number at each example is the derivative of the query's loss in its weight: "
        "negative, the example helps.</p>"
    )
    heading = html.escape(title)
    Path(path).write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        f"<style>{_STYLE}</style><h1>{heading}</h1>{note}{''.join(sections)}</html>",
        encoding="utf-8",
    )


def _item(items: Any, i: int) -> Any:
    # By place: what pandas is asked for in brackets is a label.
    return items.iloc[i] if hasattr(items, "iloc") else items[i]


def _drawn(item: PyTree) -> str:
    if hasattr(item, "items"):
        return _text(", ".join(f"{key} = {value}" for key, value in item.items()))
    if isinstance(item, str):
        return _text(item)
    array = np.asarray(item)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
        data = base64.b64encode(_png(array)).decode()
        return f'<img alt="" src="data:image/png;base64,{data}">'
    if array.ndim == 1 and array.dtype.kind in "fiub":
        return _text(", ".join(f"{value:.4g}" for value in array.tolist()))
    return _text(str(item))


def _text(text: str) -> str:
    cut = text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + " …"
    return f"<div>{html.escape(cut)}</div>"


def _png(picture: np.ndarray) -> bytes:
    """Grey or RGB, eight bits a channel."""
    if picture.dtype != np.uint8:
        picture = np.round(255 * np.clip(np.nan_to_num(picture), 0, 1)).astype(np.uint8)
    height, width = picture.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if picture.ndim == 2 else 2, 0, 0, 0)
    # Each line begins with the number of its filter, 0: none.
    lines = b"".join(b"\0" + line.tobytes() for line in picture)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
