"""What the tangents of a convex criterion leave to be gained."""

import math

import pytest

from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers import HypergradientSearcher
from strategies.space import Float, SearchSpace
from strategies.tangents import tangent_gap


def ledger_of(*known):
    ledger = Ledger(HypergradientSearcher(SearchSpace({"x": Float(0.0, 1.0)}), seed=0))
    for at, value, slope in known:
        ledger.tell(Observation(config={"x": at}, value=value, gradient={"x": slope}))
    return ledger


def test_tangents_bound_what_a_convex_criterion_can_still_gain():
    def parabola(at):
        return at, (at - 0.4) ** 2, 2.0 * (at - 0.4)

    # Up to the end of the box.
    assert tangent_gap(ledger_of(parabola(0.5))) == pytest.approx(0.2 * 0.5)
    # Tangents at 0.5 and 0.2 meet at 0.35, 0.03 below the better one; the minimum is 0.01 below.
    assert tangent_gap(ledger_of(parabola(0.5), parabola(0.2))) == pytest.approx(0.03)


def test_what_no_trial_can_improve_and_what_no_tangent_tells():
    assert tangent_gap(ledger_of((0.0, 1.0, 3.0))) == 0.0  # the best is the end of the box
    assert tangent_gap(ledger_of()) == math.inf
    # Not convex.
    assert tangent_gap(ledger_of((0.5, 0.01, 0.2), (0.3, 0.5, -1.0))) == math.inf
    assert tangent_gap(ledger_of((0.5, 0.01, 0.2), (0.3, 0.5, 1.0))) == math.inf
