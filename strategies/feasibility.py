"""Feasible before infeasible, for searchers that know values only."""

import math
from collections.abc import Sequence
from dataclasses import replace

from strategies.observation import Observation


def feasible_first(history: Sequence[Observation]) -> list[Observation]:
    """A history without constraints, in which the infeasible are worse than all feasible ones.

    The rule of Deb (2000), "An efficient constraint handling method for genetic algorithms": an
    infeasible point has the worst feasible value and its violation on top; so among themselves
    those with the smaller violation are better, whatever their objective. They have no gradient.
    """
    if not any(item.constraints for item in history):
        return list(history)
    usable = [item for item in history if item.status != "failed"]
    worst = max((float(o.value or 0.0) for o in usable if o.feasible), default=0.0)
    far = max((o.violation for o in usable if math.isfinite(o.violation)), default=0.0)
    # What is violated by nobody knows how much is behind everything else.
    unknown = 2.0 * far or 1.0

    def ranked(item: Observation) -> Observation:
        if not item.constraints:
            return item
        if item.feasible or item.status == "failed":
            return replace(item, constraints={}, constraint_gradients={})
        behind = worst + min(item.violation, unknown)
        return replace(
            item,
            value=behind,
            gradient=None,
            values=(),
            gradients=(),
            constraints={},
            constraint_gradients={},
        )

    return [ranked(item) for item in history]
