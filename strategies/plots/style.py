"""What all pictures have in common."""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

#: Okabe and Ito's colours, told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
#: For values and for the order of trials: even in lightness, and dark where it matters.
GRADES = "viridis_r"
#: Trials that failed, and what the others are compared with.
FAILED, BEST = "#c2352b", "#D55E00"

#: Values of one sign that differ by such a factor are drawn on a logarithmic axis.
_FACTOR = 10.0
#: A logarithmic axis of fewer than so many times has plain numbers on it.
_FEW = 30.0
#: One of more than so many times has no room for every digit.
_CROWDED = 5.0
#: Panels in a row, and the size of one in inches.
_COLUMNS, _WIDTH, _HEIGHT = 3, 3.4, 2.7


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in rows of three."""
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    width = max(_WIDTH * columns, 4.5)
    figure = Figure(figsize=(width, max(_HEIGHT * rows, 3.2)), layout="constrained")
    found = np.ravel(figure.subplots(rows, columns, squeeze=False)).tolist()
    for axes in found[count:]:
        axes.remove()
    for axes in found[:count]:
        plain(axes)
    return figure, found[:count]


def single(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure with one panel, inches wide and high."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Two spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def scale_of(values: np.ndarray) -> str:
    """`"log"` for positive values that differ by a factor of ten, `"linear"` for all others."""
    known = values[np.isfinite(values)]
    if known.size and known.min() > 0 and known.max() > _FACTOR * known.min():
        return "log"
    return "linear"


def readable(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis that is too short for powers of ten, and not too many."""
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    if high < _FEW * low:
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(FormatStrFormatter("%g"))
        if high > _CROWDED * low:
            axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    else:
        axis.set_minor_formatter(NullFormatter())


def whole(axis: Axis) -> None:
    """Ticks at integers only."""
    axis.set_major_locator(MaxNLocator(integer=True))


def shortened(text: str, width: int = 18) -> str:
    """A path that fits beside an axis; its end tells more than its beginning."""
    return verbatim(text if len(text) <= width else "…" + text[-(width - 1) :])


def wrapped(text: str, width: int = 14) -> str:
    """A choice in at most two lines; its beginning tells more than its end."""
    lines = textwrap.wrap(text, width) or [""]
    return verbatim("\n".join(lines[:2]) + ("…" if len(lines) > 2 else ""))


def verbatim(text: str) -> str:
    """Text in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")
