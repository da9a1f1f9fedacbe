"""The mover that follows gradients: the next step of each chain."""

from functools import partial

import numpy as np

from strategies.searchers.hypergradient.chains import Chain
from strategies.searchers.hypergradient.constants import CONSTANTS
from strategies.searchers.hypergradient.move import Move
from strategies.searchers.hypergradient.view import Offer, View


def descent(view: View, least: float) -> list[Offer]:
    """A step of the best chain gains what the model predicts.

    It is worth no less than its pace: what the chain has gained lately for each evaluation.

    A chain that is not the best wins half of the times what the search expects of a start
    elsewhere, after as many evaluations as it needs at its own pace to come down to the best; that
    pace is its record. A step that is being evaluated takes its gain from the next one.
    """
    offers: list[Offer] = []
    for position, chain in enumerate(view.chains):
        better = view.chains[:position]
        count = sum(move.move == "step" and move.chain == chain.name for move in view.waiting)
        if count >= len(CONSTANTS.lengths) or any(_joined(chain, one) for one in better):
            continue
        way = "descent, behind" if better else "descent, another" if count else "descent"
        record = 1.0 if better else view.record(way)
        cost = chain.needed(view.level, view.spread) if better else 1.0
        so_far = max((offer.worth for offer in offers), default=least)
        if better and CONSTANTS.even * view.spread / cost < so_far:
            continue
        step, cut = chain.step(CONSTANTS.lengths[count]) if count else chain.next
        if step.decrease <= CONSTANTS.rounding * abs(chain.best.value):
            continue
        config = view.space.decode(np.clip(chain.best.unit + step.s, 0.0, 1.0))
        if view.space.encode(config).tobytes() in view.tried:
            continue
        # Half of what a waiting step has left is there for the next.
        gain = step.decrease * CONSTANTS.unsure**count
        if better:
            # It cannot come down faster than its model says.
            cost = max(cost, (chain.best.value - view.level) / step.decrease)
            gain = CONSTANTS.even * view.spread
        move = Move(
            "step",
            chain.name,
            way=way,
            level=view.level,
            base=chain.best.name,
            length=float(np.max(np.abs(step.s))),
            decrease=step.decrease,
            cut=cut,
        )
        offers.append(
            Offer(
                move,
                gain,
                0.0 if better else CONSTANTS.unsure * gain,
                partial(dict, config),
                cost,
                record,
                rate=0.0 if better else _pace(view, chain, gain, count),
            )
        )
    return offers


def _pace(view: View, chain: Chain, gain: float, count: int) -> float:
    """What a descent is expected to go on gaining for each evaluation, whatever its model says.

    A model may stall for some steps and find its valley, so that the pace holds against places
    elsewhere. A change of what has no gradient leaves the chain's place as it is: against it the
    pace counts as much as the model, so that it is between the two orders of magnitude.
    """
    pace = chain.rate * CONSTANTS.unsure**count
    changeable = bool((chain.best.active & ~chain.where).any())
    return float(np.sqrt(gain * pace)) if changeable else pace


def _joined(chain: Chain, better: Chain) -> bool:
    """Whether a chain has come so near to a better one that it would only follow it."""
    away = np.abs(chain.best.unit - better.best.unit)
    return len(chain.points) > 1 and float(away.max()) < CONSTANTS.near
