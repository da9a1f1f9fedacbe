"""How curves are drawn, by a run and, from its record, by the site."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from strategies.plots.style import COLOURS

MARKERS = "os^Dv<>p"
#: One style for each round of the colours.
STYLES = ("-", "--", ":")
#: A legend of more curves stands beside the axes: within them it would hide some.
WITHIN = 5
#: Inches, with such a legend.
WIDE = 8.4


def draw(figure: Figure, plot: Mapping[str, Any]) -> None:
    """Draw the curves of a plot, bands shaded.

    **Arguments:**

    - `plot`: as a record holds it: `curves` (label -> `x`, `y` and optionally `low`, `high`), the
      labels `x` and `y`, `x_scale`, `y_scale` and `title`.
    """
    axes = figure.subplots()
    for index, (label, curve) in enumerate(plot["curves"].items()):
        # A record has null for what is not finite.
        series = {key: np.asarray(values, dtype=float) for key, values in curve.items()}
        colour = COLOURS[index % len(COLOURS)]
        marker = MARKERS[index % len(MARKERS)] if len(series["x"]) <= 12 else None
        style = STYLES[index // len(COLOURS) % len(STYLES)]
        axes.plot(series["x"], series["y"], style, color=colour, label=label, marker=marker, ms=4)
        if "low" in series and "high" in series:
            axes.fill_between(
                series["x"],
                series["low"],
                series["high"],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
    axes.set(
        xlabel=plot["x"],
        ylabel=plot["y"],
        xscale=plot["x_scale"],
        yscale=plot["y_scale"],
        title=plot["title"],
    )
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high < 30 * low:
            # Within a decade or so powers of ten say nothing: plain numbers.
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if len(plot["curves"]) > WITHIN:
        figure.set_figwidth(WIDE)
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    else:
        axes.legend(frameon=False)
