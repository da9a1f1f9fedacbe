"""What a search of one number can still gain, from the derivatives of its trials."""

import math

import numpy as np

from strategies.arguments import instance
from strategies.ledger import Ledger


def tangent_gap(ledger: Ledger) -> float:
    """The most that a trial can still improve on the best, if the criterion is convex around it.

    A convex function lies above its tangents: at the best trial, and at the next one on the side to
    which it falls. Infinite where nothing can be told: several numbers, no derivatives, or trials
    that no convex function has.
    """
    space = instance("ledger", ledger, Ledger).space
    known = [(item, item.slope) for item in ledger.history if item.slope is not None]
    if sum(domain.size for domain in space.domains.values()) != 1 or not known:
        return math.inf
    at = np.array([space.encode(item.config)[0] for item, _ in known])
    slope = np.array([found[0] for _, found in known])
    value = np.array([item.value for item, _ in known], float)
    best = int(np.argmin(value))
    if slope[best] == 0.0:
        return 0.0
    ahead = -np.sign(slope[best]) * (at - at[best])
    # Up to the end of the box where no trial is on that side.
    reach = (1.0 - at[best]) if slope[best] < 0 else at[best]
    if not np.any(ahead > 0):
        return float(abs(slope[best]) * reach)
    other = int(np.argmin(np.where(ahead > 0, ahead, np.inf)))
    away, back = ahead[other], slope[other] * -np.sign(slope[best])
    fall = abs(slope[best])
    if back <= 0:
        return math.inf  # it falls there as well: not convex, or a third place is better
    # Where v - fall t = v' - back (away - t).
    meet = (value[best] - value[other] + back * away) / (fall + back)
    # Below the other tangent already: not convex.
    return float(fall * min(meet, away)) if meet >= 0 else math.inf
