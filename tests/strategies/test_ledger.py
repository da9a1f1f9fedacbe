"""A searcher is pure, a ledger remembers, and a configuration is checked once."""

import copy
import pickle

import numpy as np
import pytest

from strategies import (
    BayesSearcher,
    Float,
    HypergradientSearcher,
    Int,
    Ledger,
    Observation,
    ParetoSearcher,
    RandomSearcher,
    Report,
    SearchSpace,
    report,
)
from strategies.intake import Intake
from strategies.local import minimize
from strategies.schedulers import ASHA, run

SPACE = SearchSpace({"x": Float(1e-3, 1.0, log=True), "l2": Float(-1.0, 1.0, shape=(2,))})


def objective(config):
    x, l2 = config["x"], np.array(config["l2"])
    return report(x + float(l2 @ l2), {"x": 1.0, "l2": 2 * l2}, cost=1.0 + x)


def test_ledgers_of_one_searcher_know_nothing_of_each_other():
    searcher = HypergradientSearcher(SPACE, seed=3)
    one, two = Ledger(searcher), Ledger(searcher)
    first = minimize(objective, SPACE, trials=4, searcher=one)
    assert two.history == []
    assert minimize(objective, SPACE, trials=4, searcher=two).history == first.history
    assert first.ledger is one
    assert minimize(objective, SPACE, trials=6, searcher=first.ledger).trials[0].number == 4


def test_a_ledger_is_saved_restored_and_copied(tmp_path):
    ledger = Ledger(RandomSearcher(SPACE, seed=1))
    asked = ledger.ask()
    ledger.tell(Observation(asked.config, 1.0, number=asked.number))
    assert ledger.best.config == asked.config
    ledger.save(tmp_path / "state")
    again = Ledger(RandomSearcher(SPACE, seed=1))
    again.restore(tmp_path / "state")
    assert again.history == ledger.history
    assert pickle.loads(pickle.dumps(copy.deepcopy(ledger))).history == ledger.history


@pytest.mark.parametrize("kind", [RandomSearcher, BayesSearcher, ParetoSearcher])
def test_what_was_checked_is_not_checked_again(kind, monkeypatch):
    ledger = Ledger(kind(SPACE))
    minimize(objective, SPACE, trials=8, searcher=ledger)
    checks = []
    check = Float.check
    monkeypatch.setattr(
        Float, "check", lambda self, value, path: checks.append(path) or check(self, value, path)
    )
    history = ledger.history
    points = [item.point for item in history]
    ledger.searcher.propose(8, history, [])
    new = 2  # the suggestion itself has two hyperparameters
    assert len(checks) == new if kind is not BayesSearcher else len(checks) >= new
    assert [item.point for item in ledger.history] == points
    assert all(item.unit is item.point.unit for item in history)
    assert all(item.slope is item.slope for item in history)


def test_a_point_has_all_forms_and_belongs_to_its_space():
    config = SPACE.sample(np.random.default_rng(0))
    point = SPACE.point({"x": config["x"], "l2": config["l2"]})
    assert SPACE.point(point) is point
    assert point.config == config
    assert dict(point.flat) == SPACE.flatten(config)
    np.testing.assert_array_equal(point.unit, SPACE.encode(config))
    with pytest.raises(ValueError, match="read-only"):
        point.unit[0] = 0.0
    other = SearchSpace({"x": Float(1e-2, 1.0, log=True), "l2": Float(-1.0, 1.0, shape=(2,))})
    low = SPACE.point({"x": 1e-3, "l2": [0.0, 0.0]})
    with pytest.raises(ValueError, match="'x': expected a number in"):
        other.point(low)


def test_the_slope_is_the_gradient_in_unit_coordinates():
    found = minimize(objective, SPACE, trials=2).history[1]
    np.testing.assert_array_equal(found.slope, SPACE.pull_back(found.config, found.gradient))
    step = 1e-6
    for i in range(3):
        near = found.unit.copy()
        near[i] += step
        change = objective(SPACE.decode(near)).value - found.value
        assert change / step == pytest.approx(found.slope[i], rel=1e-3, abs=1e-4)
    assert pickle.loads(pickle.dumps(found)) == found
    assert pickle.loads(pickle.dumps(found)).point is None


def test_propose_checks_what_was_not_checked_before():
    searcher = ParetoSearcher(SPACE)
    with pytest.raises(ValueError, match="'cost': expected a positive number, received -1"):
        searcher.propose(1, [Observation(SPACE.default(), 1.0, cost=-1.0, number=0)], [])
    with pytest.raises(ValueError, match="'x': expected a number"):
        searcher.propose(1, [Observation({"x": 2.0, "l2": [0, 0]}, 1.0, cost=1.0, number=0)], [])


def test_the_switch_of_the_intake_decides_between_an_error_and_a_warning(caplog):
    made = Report(2.0, {"x": 1.0, "depth": 1.0}, cost=-1.0)
    for given, message in [(made, "'depth'"), (Report(2.0, cost=-1.0), "'cost'")]:
        strict = Intake(SPACE, ParetoSearcher(SPACE).check, strict=True)
        with pytest.raises(ValueError, match=message):
            strict(SPACE.default(), given)
    tolerant = Intake(SPACE)
    for number in range(2):
        found = tolerant(SPACE.default(), made, number=number, maximise=True)
    assert (found.value, found.gradient, found.cost) == (-2.0, {"x": -1.0}, -1.0)
    assert caplog.text.count("'depth'") == 1


@pytest.mark.parametrize("scale", [1e160, 1e300])
def test_huge_values_and_gradients_do_not_overflow(scale):
    space = SearchSpace({"x": Float(-1, 1, shape=(3,))})

    def steep(config):
        x = np.array(config["x"]) - 0.2
        return report(scale * float(x @ x), {"x": scale * 2 * x})

    for kind in (HypergradientSearcher, BayesSearcher):
        with np.errstate(over="raise"):
            found = minimize(steep, space, trials=12, searcher=kind(space))
        assert found.best_value < 1e-6 * scale


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": -1}, {"workers": 1.5}, {"timeout": -1}, {"timeout": 0}],
    ids=str,
)
def test_options_that_would_do_nothing_are_errors(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"'{name}': expected"):
        minimize(objective, SPACE, trials=1, **options)


def test_a_grid_is_exact_and_a_given_value_is_left_as_it_is():
    fine = Float(1.7e9, 1.7e9 + 100, step=0.001)
    assert fine.decode(np.array(0.123456)) == 1700000012.346
    assert fine.check(1.7e9 + 0.123, "t") == 1700000000.123
    with pytest.raises(ValueError, match=r"a multiple of 0.001"):
        fine.check(1.7e9 + 0.0005, "t")
    finest = Float(1e6, 1e6 + 1, step=1e-7)
    assert finest.decode(np.array(0.1234567)) == 1000000.1234567
    tenths = Float(0.0, 1.0, step=0.1)
    assert [tenths.decode(np.array(k / 10)) for k in range(11)] == [k / 10 for k in range(11)]
    given = 0.12345678901234567
    for domain in (Float(0.0, 1.0), Float(1e-3, 1.0, log=True)):
        assert domain.check(given, "x") == given
    searcher = RandomSearcher(SPACE, first=[{"x": given}])
    assert searcher.propose(0, [], []).config["x"] == given
    assert Int(0, 5).check(np.int64(3), "n") == 3


def test_an_objective_may_change_its_configuration():
    def careless(config):
        config["l2"][0] = 5.0
        return config.pop("x")

    found = minimize(careless, SPACE, trials=3)
    assert [item.value for item in found.history] == [item.config["x"] for item in found.history]
    assert all(SPACE.validate(item.config) == item.config for item in found.history)
    scheduler = ASHA(RandomSearcher(SPACE), 3, configurations=3)
    run(lambda job: careless(job.config), scheduler)
    assert all(SPACE.validate(c.config) == c.config for c in scheduler.candidates.values())


def test_a_reported_hypergradient_brings_plain_flags_along():
    import json

    import jax.numpy as jnp

    from hypergrad import BilevelProblem, ImplicitDifferentiation, hypergradient
    from strategies import report

    problem = BilevelProblem(
        lambda w, h, b: jnp.sum((w - h["x"]) ** 2), lambda w, h, b: jnp.sum(w**2)
    )
    arguments = (jnp.ones(2), {"x": jnp.ones(2)}, None, None)
    found = hypergradient(problem, *arguments, estimator=ImplicitDifferentiation())
    info = report(found).info
    assert json.loads(json.dumps(info))["breakdown"] is False


def test_programs_of_version_0_1_ask_and_tell_the_searcher():
    searcher = RandomSearcher({"x": Float(0.0, 1.0)}, seed=0)
    first = Ledger(RandomSearcher({"x": Float(0.0, 1.0)}, seed=0)).ask()
    asked = searcher.ask()
    assert asked == first
    searcher.tell(Observation(asked.config, 2.0, number=asked.number))
    assert searcher.history == searcher.ledger.history
    assert searcher.best.value == 2.0
    again = minimize(lambda config: 1.0, searcher.space, searcher=searcher, trials=2)
    assert [o.value for o in again.history] == [2.0, 1.0]
