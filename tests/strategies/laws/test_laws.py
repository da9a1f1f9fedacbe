"""Power laws from runs."""

import numpy as np
import pytest

from strategies import Float, Ledger, Observation, RandomSearcher, SearchSpace
from strategies.laws import PowerLaw, excess, optima, rows

SIZES = [(n, d) for n in (1e6, 4e6, 2e7, 1e8) for d in (1e8, 1e9, 8e9)]


def points(noise, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"N": n, "D": d, "lr": 2.0 * n**-0.7 * d**0.3 * np.exp(noise * rng.standard_normal())}
        for n, d in SIZES
    ]


def test_an_exact_law_is_found():
    law = PowerLaw.fit(points(0.0), ("N", "D"), "lr")
    assert law.coefficient == pytest.approx(2.0, rel=1e-8)
    assert law.exponents == pytest.approx((-0.7, 0.3), rel=1e-8)
    there = law.predict({"N": 1e10, "D": 1e11})
    assert there.low == pytest.approx(there.high) == pytest.approx(2.0 * 1e-7 * 1e11**0.3)
    # One range of N spans a factor of 100, and so does the way beyond it.
    assert there.reach == pytest.approx(1.0)
    assert law.predict({"N": 1e7, "D": 1e9}).reach == 0.0


def test_intervals_cover_the_truth_as_often_as_they_say():
    exponents, optimum = 0, 0
    point, trials = {"N": 1e9, "D": 1e10}, 200
    rng = np.random.default_rng(1)
    for seed in range(trials):
        law = PowerLaw.fit(points(0.2, seed), ("N", "D"), "lr", bootstrap=300)
        low, high = law.intervals["N"]
        exponents += low <= -0.7 <= high
        there = law.predict(point)
        truth = 2.0 * 1e9**-0.7 * 1e10**0.3 * np.exp(0.2 * rng.standard_normal())
        optimum += there.low <= truth <= there.high
    # Three standard errors of a share of 95 % in 200, and what nine degrees of freedom cost.
    assert exponents / trials >= 0.86
    assert optimum / trials >= 0.86


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 3 for 1 inputs"):
        PowerLaw.fit(points(0.1)[:2], ("N",), "lr")
    with pytest.raises(ValueError, match="vary independently"):
        PowerLaw.fit([{"N": n, "D": 20 * n, "lr": 1.0} for n in (1, 2, 4, 9)], ("N", "D"), "lr")
    with pytest.raises(ValueError, match="'lr': expected a positive number"):
        PowerLaw.fit([{"N": n, "lr": 0.0} for n in (1, 2, 4)], ("N",), "lr")
    with pytest.raises(ValueError, match="was fitted"):
        _ = PowerLaw(("N",), "lr", 1.0, (0.5,)).intervals


def table():
    grid = np.exp2(np.arange(-12.0, -1.0))
    return [
        {"N": n, "lr": lr, "value": 2.0 + np.log2(lr / n**-0.5) ** 2}
        for n in (2.0**6, 2.0**8, 2.0**10, 2.0**12)
        for lr in grid
    ]


def test_optima_of_a_table_and_their_excess():
    found = optima(table(), ["N"], ["lr"])
    assert [row["lr"] for row in found] == [2.0**-3, 2.0**-4, 2.0**-5, 2.0**-6]
    law = PowerLaw.fit(found, ("N",), "lr")
    assert set(excess(table(), [law]).values()) == {0.0}
    # Two octaves off everywhere: 2 + 4 against 2.
    wrong = PowerLaw(("N",), "lr", 4.0, (-0.5,))
    assert max(excess(table(), [wrong]).values()) == pytest.approx(2.0, abs=1.5)


def test_an_optimum_at_the_edge_is_no_measurement():
    short = [row for row in table() if row["lr"] >= 2.0**-5]
    with pytest.raises(ValueError, match=r"'lr': expected an optimum inside .* at its edge"):
        optima(short, ["N"], ["lr"])
    assert len(optima(short, ["N"], ["lr"], edge="drop")) == 2
    assert len(optima(short, ["N"], ["lr"], edge="keep")) == 4


def test_from_the_history_of_a_search():
    space = SearchSpace({"opt": {"lr": Float(1e-4, 1.0, log=True)}})
    found = []
    for n in (64, 256, 1024, 4096):
        ledger = Ledger(RandomSearcher(space, seed=n))
        for _ in range(30):
            asked = ledger.ask()
            value = (np.log(asked.config["opt"]["lr"]) + 0.5 * np.log(n)) ** 2
            ledger.tell(Observation(asked.config, value, number=asked.number))
        found += rows(ledger, N=n)
    law = PowerLaw.fit(optima(found, ["N"], ["opt/lr"]), ("N",), "opt/lr")
    low, high = law.intervals["N"]
    assert low <= -0.5 <= high
    assert law.exponents[0] == pytest.approx(-0.5, abs=0.1)
