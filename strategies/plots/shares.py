"""Importance as bars."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from strategies.arguments import instances, mapping
from strategies.importance import Share
from strategies.plots.style import COLOURS, shortened, single

#: Bars that fit into a figure.
_MOST = 25


def shares(found: Mapping[str, Share]) -> Figure:
    """What `strategies.importance.importance` found, with its intervals; at most 25 bars."""
    named = mapping("found", found, "shares by name")
    instances("found", named.values(), Share)
    if not named:
        raise ValueError("'found': expected at least one share, received none")
    shown = list(named.items())[:_MOST]
    figure, axes = single(6.4, max(0.32 * len(shown) + 1.1, 1.8))
    size = np.array([share.share for _, share in shown])
    low = size - [share.low for _, share in shown]
    high = np.array([share.high for _, share in shown]) - size
    rows = np.arange(len(shown))
    # The estimate of the whole sample may lie outside what its resamples give.
    ends = np.maximum([low, high], 0.0)
    axes.barh(rows, size, color=COLOURS[0], alpha=0.75)
    axes.errorbar(size, rows, xerr=ends, fmt="none", ecolor="#333333", capsize=3)
    axes.set_yticks(rows, [shortened(name, 28) for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0.0, min(1.0, max((size + ends[1]).max() * 1.05, 0.05)))
    axes.set_xlabel("share of the variance, with 90 % interval")
    axes.grid(visible=False, axis="y")
    return figure
