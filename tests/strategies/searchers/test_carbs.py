"""CARBS: walks from a bad centre, spends no more than it may, tries lucky values again."""

import math

import numpy as np
import pytest

from strategies import CARBSSearcher, Categorical, Int, Ledger, Observation, SearchSpace
from strategies.searchers.carbs import _Trend
from strategies.space import Logit, Ordinal, around
from strategies.surrogates.gaussian_process import Prior

SPACE = SearchSpace({"size": around(10.0), "rate": around(10.0), "kind": Categorical(["a", "b"])})
LARGEST = 1e3


def best_rate(size):
    return 0.03 * (size / 100) ** -0.4


def task(config):
    """Falls with the size, which is the cost; the centre's rate is 2.1 decades off."""
    size, rate = config["size"], config["rate"]
    off = math.log10(rate / best_rate(size))
    return 0.1 + size**-0.3 + 0.1 * off**2 + 0.05 * (config["kind"] == "a"), size


def searched(searcher, trials, task=task):
    ledger = Ledger(searcher)
    for _ in range(trials):
        asked = ledger.ask()
        value, cost = task(asked.config)
        ledger.tell(Observation(asked.config, value, cost=cost, number=asked.number))
    return ledger


@pytest.fixture(scope="module")
def walked():
    return searched(CARBSSearcher(SPACE, seed=0, max_cost=LARGEST), 50)


def test_walks_to_the_front_from_a_centre_that_is_far_off(walked):
    assert walked.history[0].config["rate"] == 10.0
    best = min(walked.history, key=lambda item: item.value)
    off = abs(math.log10(best.config["rate"] / best_rate(best.config["size"])))
    assert off < 0.4
    assert best.config["kind"] == "b"
    # Once the rate was good it went up in cost by itself.
    assert max(item.cost for item in walked.history) > 40.0


def test_tries_members_of_the_front_again(walked):
    again = [item for item in walked.history if item.note.get("origin") == "resample"]
    assert {item.number for item in again} == {n for n in range(5, 50, 5)}
    known = [repr(item.config) for item in walked.history]
    assert all(known.index(repr(item.config)) < item.number for item in again)
    never = searched(CARBSSearcher(SPACE, seed=0, resample=0), 12).history
    assert len({repr(item.config) for item in never}) == 12


def test_a_space_without_floats():
    """Members of the front are tried again there, too, and draws stay near in every coordinate."""
    width = Int(1, 10_000, log=True, default=100, spread=0.01)
    depth = Ordinal(list(range(100)), default=50, spread=0.02)
    space = SearchSpace({"width": width, "depth": depth})
    searcher = CARBSSearcher(space, seed=0)
    np.testing.assert_allclose(searcher._steps, [0.01, 0.02])
    history = searched(
        searcher, 11, lambda c: (1.0 / c["width"] + 0.01 * c["depth"], c["width"])
    ).history
    again = [item.number for item in history if item.note["origin"] == "resample"]
    assert again == [5, 10]
    assert all(history[n].config in [item.config for item in history[:n]] for n in again)


def test_the_model_does_not_depend_on_the_unit_of_the_cost():
    places = np.linspace(0.0, 4.0, 12)[:, None]
    values = np.sin(2.0 * places[:, 0]) + 0.3 * places[:, 0]
    at, groups = np.array([[0.7], [2.2], [5.0]]), np.zeros(1, int)
    small, large = (
        _Trend.fit(places, size * values, groups, Prior(lengthscale=1.0)) for size in (1e-3, 1e3)
    )
    for one, other in zip(small.predict(at), large.predict(at), strict=True):
        np.testing.assert_allclose(1e6 * one, other, rtol=1e-6)


def test_a_function_of_the_ledger(walked):
    history, pending = walked.history[:21], []
    first = CARBSSearcher(SPACE, seed=0, max_cost=LARGEST).propose(21, history, pending)
    again = CARBSSearcher(SPACE, seed=0, max_cost=LARGEST).propose(21, history[::-1], pending)
    assert first.config == again.config == walked.history[21].config
    beside = CARBSSearcher(SPACE, seed=0, max_cost=LARGEST).propose(22, history, [first])
    assert beside.config != first.config


def test_failures_are_learnt():
    space = SearchSpace({"x": around(0.0, kind="linear"), "y": around(0.0, kind="linear")})

    def cliff(config):
        # What fails is no worse elsewhere: only the model of failures knows.
        value = (config["x"] - 1.0) ** 2
        return (None if config["y"] > 0.2 else value), 1.0

    history = searched(CARBSSearcher(space, seed=1), 40, cliff).history
    failed = [item.status == "failed" for item in history[20:]]
    assert sum(failed) <= 3
    assert min(item.value for item in history if item.value is not None) < 0.01


def test_draws_come_closer_to_the_centre_while_all_fail():
    searcher = CARBSSearcher(SPACE, seed=0)
    centre = {"size": 10.0, "rate": 10.0, "kind": "a"}
    failed = [Observation(centre, None, number=n) for n in range(5)]
    config = searcher.propose(5, failed, []).config
    assert abs(math.log10(config["size"] / 10.0)) < 0.1


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_domains_around_a_centre(scale):
    rate = around(1e-3, scale)
    assert rate.default == 1e-3
    assert (rate.low, rate.high) == pytest.approx(
        (10 ** (-3 - 12 * scale), 10 ** (-3 + 12 * scale))
    )
    step = rate.decode(rate.encode(1e-3) + rate.spread)
    assert step == pytest.approx(10 ** (-3 + scale))
    shift = around(5.0, scale, kind="linear")
    assert shift.decode(shift.encode(5.0) + shift.spread) == pytest.approx(5.0 + scale)
    width = around(64, scale, integer=True)
    assert isinstance(width, Int)
    assert width.low == 1
    assert width.default == 64
    further = width.decode(width.encode(64) + width.spread)
    assert further == pytest.approx(64 * 10**scale, rel=0.02)
    drawn = [SearchSpace({"r": rate}).sample(np.random.default_rng(s))["r"] for s in range(200)]
    assert np.std(np.log10(drawn)) == pytest.approx(scale, rel=0.15)


def test_probabilities_are_searched_by_their_odds():
    """From a momentum of 0.5 to 0.9995: three decades of odds, a hair of the number itself."""
    space = SearchSpace({"momentum": around(0.5, kind="logit"), "size": around(10.0)})
    assert SearchSpace.from_dict(space.to_dict()) == space
    momentum = space.domains["momentum"]
    further = momentum.decode(momentum.encode(0.5) + momentum.spread)
    assert further / (1 - further) == pytest.approx(10.0, rel=1e-9)
    for value in (1e-9, 0.3, 0.9995, 1 - 1e-9):
        assert momentum.decode(momentum.encode(value)) == pytest.approx(value, rel=1e-12)
        again = momentum.decode(momentum.encode(momentum.decode(momentum.encode(value))))
        assert again == momentum.decode(momentum.encode(value))
    slope = momentum.pull_back(0.3, np.ones(1))
    up, down = (momentum.decode(momentum.encode(0.3) + s * 1e-6) for s in (1.0, -1.0))
    assert (up - down) / 2e-6 == pytest.approx(slope[0], rel=1e-4)

    def task(config):
        odds = config["momentum"] / (1 - config["momentum"])
        return 0.1 + 0.1 * math.log10(odds / 2000) ** 2, config["size"]

    ledger = searched(CARBSSearcher(space, seed=0, max_cost=LARGEST), 40, task)
    best = min(ledger.history, key=lambda item: item.value).config["momentum"]
    assert abs(math.log10(best / (1 - best) / 2000)) < 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ceiling_on_the_cost_holds(seed):
    """Larger is better without end: costs go up to it, and beyond by a wrong prediction only."""
    space, ceiling = SearchSpace({"size": around(10.0)}), 30.0
    task = lambda config: (config["size"] ** -0.3, config["size"])  # noqa: E731

    def dearest(searcher):
        history = searched(searcher, 40, task).history
        return max(item.cost for item in history if item.note.get("origin") == "model")

    assert 0.9 < dearest(CARBSSearcher(space, seed=seed, max_cost=ceiling)) / ceiling < 1.2
    assert dearest(CARBSSearcher(space, seed=seed)) > 100 * ceiling


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CARBSSearcher(SPACE, radius=0.0), "'radius': expected a positive"),
        (lambda: CARBSSearcher(SPACE, resample=-1), "'resample': expected an integer"),
        (lambda: CARBSSearcher(SPACE, max_cost=0), "'max_cost': expected a positive"),
        (lambda: around(0.0), "'centre': expected a positive"),
        (lambda: around(1.0, -1), "'scale': expected a positive"),
        (lambda: around(1.0, kind="cubic"), "'kind': expected one of"),
        (lambda: around(1.0, kind="logit"), "'centre': expected a number between 0 and 1"),
        (lambda: around(0.9, kind="logit", integer=True), "'integer': expected False"),
        (lambda: around(1e-20, kind="logit"), "'centre': expected a number further than 1e-14"),
        (lambda: around(0.5, 1e-17, kind="logit"), "'high': expected a number further"),
        (lambda: Logit(0.1, 1.0), "'high': expected a number strictly between 0 and 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
