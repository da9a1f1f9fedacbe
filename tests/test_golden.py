"""Golden values: what version 0.1.0 suggested, computed and saved is what this version does.

Tolerances are those of other processors and other versions of the linear algebra below us, not of
our own changes.
"""

import json
from typing import Any

import numpy as np
import pytest

from strategies.ledger import Ledger
from tests.golden import cases


def golden(name: str) -> dict[str, Any]:
    """One of the golden files."""
    return json.loads((cases.HERE / f"{name}.json").read_text())


def same(received: Any, expected: Any, rtol: float) -> None:
    """Compare nested values: numbers within `rtol`, everything else exactly."""
    if isinstance(expected, dict):
        assert received.keys() == expected.keys()
        for key in expected:
            same(received[key], expected[key], rtol)
    elif isinstance(expected, list):
        assert len(received) == len(expected)
        for mine, theirs in zip(received, expected, strict=True):
            same(mine, theirs, rtol)
    elif isinstance(expected, float):
        np.testing.assert_allclose(received, expected, rtol=rtol, atol=1e-12)
    else:
        assert received == expected


@pytest.mark.parametrize("name", sorted(cases.SEARCHERS))
def test_suggestions(name):
    same(cases.search(name), golden("searches")[name], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(cases.SCHEDULERS))
def test_jobs(name):
    same(cases.schedule(name), golden("schedules")[name], rtol=1e-9)


@pytest.mark.parametrize("name", sorted(cases.estimators()))
def test_hypergradients(name):
    expected = golden("hypergradients")[name]
    received = cases.gradient(name)
    same(received["value"], expected["value"], rtol=1e-9)
    np.testing.assert_allclose(
        received["grad"], expected["grad"], atol=1e-8 * np.max(np.abs(expected["grad"]))
    )


@pytest.mark.parametrize("name", sorted(cases.ALGORITHMS))
def test_outer_steps(name):
    same(cases.outer(name), golden("outer")[name], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(cases.SEARCHERS))
def test_states_of_version_1_are_read(name):
    ledger = Ledger(cases.SEARCHERS[name]())
    ledger.restore(cases.HERE / f"state-{name}.json")
    assert len(ledger.history) == cases.TRIALS
    configs = [dict(item.config) for item in ledger.history]
    # The hypergradient searcher chooses otherwise by now; its old notes are read all the same.
    saved = golden("searches")
    same(configs, saved.get(f"{name}, 0.1.0", saved[name]), rtol=0)
    assert ledger.ask().number == cases.TRIALS


@pytest.mark.parametrize("name", sorted(cases.SCHEDULERS))
def test_schedules_of_version_1_are_read(name):
    scheduler = cases.SCHEDULERS[name]()
    scheduler.restore(cases.HERE / f"state-{name}.json")
    results = sum(len(candidate.results) for candidate in scheduler.candidates.values())
    assert results == len(golden("schedules")[name])
