"""Profiles of times to a target."""

import numpy as np
import pytest

from strategies.benchmark import profile

INF = float("inf")
TIMES = {
    "a": {"u": 10.0, "v": 30.0, "w": INF},
    "b": {"u": 20.0, "v": 10.0, "w": INF},
    "c": {"u": INF, "v": 60.0, "w": INF},
}


def test_by_hand():
    found = profile(TIMES)
    # a: 1 and 3 times the fastest, b: 2 and 1, c: never and 6 times; of w nobody saw the target.
    assert found.scores == pytest.approx({"a": (1 + 1 / 3) / 3, "b": (2 / 3 + 1) / 3, "c": 0.0})
    assert found.share("a", 1.0) == pytest.approx(1 / 3)
    assert found.share("a", 3.0) == pytest.approx(2 / 3)
    assert found.share("c", 6.0) == pytest.approx(1 / 3)


def test_the_score_is_the_integral_of_the_shares():
    rng = np.random.default_rng(0)
    drawn = {str(n): dict(enumerate(rng.exponential(1.0, 9) + 0.1)) for n in range(4)}
    found = profile(drawn, most=3.0)
    factors = np.linspace(1.0, 3.0, 20001)
    for name, score in found.scores.items():
        shares = [found.share(name, factor) for factor in factors]
        assert score == pytest.approx(np.mean(shares), abs=1e-3)
        at, share = found.curve(name)
        assert share.tolist() == [found.share(name, f) for f in at]
    assert len(found.plot().axes[0].lines) == 4


def test_a_reference_sets_the_unit_and_has_no_score():
    alone = profile({"a": {"u": 20.0}})
    against = profile({"a": {"u": 20.0}}, reference={"u": 10.0})
    assert alone.scores == {"a": 1.0}
    assert against.scores == pytest.approx({"a": 2 / 3})


def test_what_is_refused():
    with pytest.raises(ValueError, match="'b': expected times of u, v, w"):
        profile({**TIMES, "b": {"u": 1.0}})
    with pytest.raises(ValueError, match="'a', 'u': expected a positive time"):
        profile({"a": {"u": 0.0}})
    with pytest.raises(ValueError, match="'a', 'u': expected a positive time"):
        profile({"a": {"u": float("nan")}})
    with pytest.raises(ValueError, match="'most'"):
        profile(TIMES, most=1.0)
    with pytest.raises(ValueError, match="'times'"):
        profile({})
    with pytest.raises(ValueError, match="'name': expected one of a, b, c"):
        profile(TIMES).share("d", 2.0)
