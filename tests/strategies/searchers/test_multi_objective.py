"""Several objectives: volumes, the common descent, the searcher, and the results."""

import numpy as np
import pytest

from strategies import (
    BayesSearcher,
    Float,
    MultiObjectiveSearcher,
    Observation,
    RandomSearcher,
    Report,
    SearchSpace,
    report,
)
from strategies.front import front, hypervolume, knee
from strategies.ledger import Ledger
from strategies.local import minimize
from strategies.schedulers import ASHA, run
from strategies.surrogates.common_descent import common_descent
from strategies.surrogates.hypervolume import boxes, improvement
from strategies.surrogates.hypervolume import hypervolume as volume

SPACE = SearchSpace({"x": Float(0.0, 1.0, shape=(3,))})


def circles(config, *, slopes=False, centres=((0.2, 0.5, 0.5), (0.8, 0.5, 0.5))):
    """Squared distances from two points: the front is the line between them."""
    x, goals = np.array(config["x"]), np.array(centres)
    gradients = [{"x": 2 * (x - goal)} for goal in goals] if slopes else None
    return report(values=[float(np.sum((x - goal) ** 2)) for goal in goals], gradients=gradients)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_volume_and_boxes_are_counted_right(count):
    rng = np.random.default_rng(count)
    points, reference = rng.random((6, count)), np.full(count, 1.1)
    draws = 1.1 * rng.random((20_000, count))
    beaten = (points[:, None] <= draws).all(2).any(0)
    error = 4 * np.sqrt(0.25 / len(draws)) * 1.1**count
    assert volume(points, reference) == pytest.approx(beaten.mean() * 1.1**count, abs=error)
    # Every place that is not dominated is in one box, the others are in none.
    low, high = boxes(points, reference)
    inside = ((low <= draws[:, None]) & (draws[:, None] < high)).all(2).sum(1)
    np.testing.assert_array_equal(inside, ~beaten)


@pytest.mark.parametrize("logs", [(False,) * 3, (True, False, True)])
def test_expected_improvement_of_three_objectives(logs):
    rng = np.random.default_rng(0)
    points, reference = 0.3 + rng.random((5, 3)), np.full(3, 1.4)
    mean, deviation = np.array([0.3, 0.5, 0.4]), np.array([0.3, 0.2, 0.4])
    mean[list(logs)] = np.log(mean[list(logs)])
    gain = improvement(points, reference, logs)
    value = gain(mean[None], deviation[None])[0]
    draws = mean + deviation * rng.standard_normal((1500, 3))
    draws[:, list(logs)] = np.exp(draws[:, list(logs)])
    before = volume(points, reference)
    gains = [volume(np.r_[points, draw[None]], reference) - before for draw in draws]
    assert value == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(len(draws)))
    again, by_mean, by_deviation = gain.slopes(mean, deviation)
    assert again == pytest.approx(value)
    step = 1e-6
    for i, unit in enumerate(np.eye(3)):
        for slope, way in ((by_mean, (unit, 0)), (by_deviation, (0, unit))):
            up, down = (
                gain((mean + s * way[0])[None], (deviation + s * way[1])[None])[0]
                for s in (step, -step)
            )
            assert slope[i] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


def test_the_common_descent():
    # Shortest vector between the ends: the foot of the perpendicular from the origin.
    np.testing.assert_allclose(common_descent(np.array([[2.0, 0.0], [0.0, 2.0]])), [-1.0, -1.0])
    np.testing.assert_allclose(common_descent(np.array([[1.0, 0.0], [3.0, 1.0]])), [-1.0, 0.0])
    np.testing.assert_allclose(common_descent(np.array([[1.0, 0.0], [-2.0, 0.0]])), 0, atol=1e-12)
    gradients = np.random.default_rng(0).standard_normal((4, 6))
    way = common_descent(gradients)
    # All fall along it, at least as fast as it is long.
    assert (gradients @ way <= -way @ way + 1e-9).all()


def test_what_counts_as_several_objectives():
    ledger = Ledger(MultiObjectiveSearcher(SPACE, reference=[1.0, 1.0]))
    config = SPACE.default()
    with pytest.raises(ValueError, match="expected 2 to 4 objectives, received 1"):
        ledger.tell(Observation(config, 1.0))
    with pytest.raises(ValueError, match="expected 2 as in 'reference', received 3"):
        ledger.tell(Observation(config, None, values=(1.0, 2.0, 3.0)))
    with pytest.raises(ValueError, match=r"BayesSearcher expected one objective, received 2"):
        Ledger(BayesSearcher(SPACE)).tell(Observation(config, None, values=(1.0, 2.0)))
    with pytest.raises(ValueError, match="'reference'"):
        MultiObjectiveSearcher(SPACE, reference=[np.nan, 1.0])
    with pytest.raises(ValueError, match="'values': expected at least one objective"):
        report(values=[])
    with pytest.raises(ValueError, match="'values': expected nothing beside 'value'"):
        report(1.0, values=[1.0, 2.0])


def test_objectives_whose_number_changes():
    ledger = Ledger(RandomSearcher(SPACE))
    for count in (2, 2, 3):
        suggestion = ledger.ask()
        told = Observation(suggestion.config, None, values=(1.0,) * count, number=suggestion.number)
        if count == 2:
            ledger.tell(told)
            continue
        with pytest.raises(ValueError, match="expected 2 objectives as in the trials before"):
            ledger.tell(told)
    assert len(ledger.pending) == 1
    fresh = Ledger(RandomSearcher(SPACE))
    fresh.load_state_dict(ledger.state_dict())
    assert fresh.history == ledger.history
    with pytest.raises(ValueError, match="expected 2 objectives as in the trials before"):
        fresh.tell(Observation(SPACE.default(), 1.0))
    told = fresh.tell(Observation(SPACE.default(), None, values=(1.0, np.nan)))
    assert (told.status, told.values) == ("failed", ())


def test_maximised_objectives_are_turned_one_by_one():
    made = Report(1.0, values=[1.0, 2.0], gradients=[{"x": [1.0] * 3}, None])
    from strategies.intake import Intake

    told = Intake(SPACE)(SPACE.default(), made, maximise=[False, True])
    assert (told.value, told.values) == (1.0, (1.0, -2.0))
    assert told.gradients == ({"x": [1.0] * 3}, None)
    assert Intake(SPACE)(SPACE.default(), made, maximise=True).values == (-1.0, -2.0)


def found(values, constraints=None):
    return Observation({}, None, values=values, constraints=constraints or {})


def test_front_volume_and_knee():
    history = [
        found((0.0, 1.0)),
        found((0.2, 0.3)),
        found((1.0, 0.0)),
        found((0.3, 0.4)),
        found((0.1, 0.1), {"a": 1.0}),
        found((np.nan, 0.0)),
    ]
    assert front(history) == history[:3]
    assert knee(history) is history[1]
    assert hypervolume(history, [1.0, 1.0]) == pytest.approx(0.8 * 0.7)
    with pytest.raises(ValueError, match="'reference': expected 2 numbers"):
        hypervolume(history, [1.0])
    assert (front([]), knee([]), hypervolume([], [1.0, 1.0])) == ([], None, 0.0)


@pytest.mark.parametrize(("slopes", "trials"), [(False, 25), (True, 14)])
def test_the_front_is_found(slopes, trials):
    reference = [0.5, 0.5]
    searcher = MultiObjectiveSearcher(SPACE, seed=0, reference=reference)
    result = minimize(
        lambda config: circles(config, slopes=slopes), SPACE, trials=trials, searcher=searcher
    )
    line = [circles({"x": [t, 0.5, 0.5]}).values for t in np.linspace(0.2, 0.8, 400)]
    whole = volume(np.array(line), np.array(reference))
    # Ten points evenly spread over the front have 0.977 of the whole.
    assert result.hypervolume(reference) > 0.95 * whole
    drawn = minimize(circles, SPACE, trials=trials, searcher=RandomSearcher(SPACE, seed=0))
    assert result.hypervolume(reference) > drawn.hypervolume(reference)
    assert 0.3 < result.knee.config["x"][0] < 0.7
    assert len(result.front) >= 5
    # A pure function of what is known, whatever its order.
    again = MultiObjectiveSearcher(SPACE, seed=0, reference=reference)
    assert again.propose(30, result.history[::-1], []) == searcher.propose(30, result.history, [])


def test_constraints_cut_the_front():
    def task(config):
        made = circles(config)
        return Report(made.value, values=made.values, constraints={"half": 0.5 - config["x"][0]})

    searcher = MultiObjectiveSearcher(SPACE, seed=0)
    result = minimize(task, SPACE, trials=20, searcher=searcher)
    assert all(item.config["x"][0] >= 0.5 for item in result.front)
    # The best in the first objective that is allowed is at the bound.
    assert result.front[0].values[0] == pytest.approx(0.09, abs=0.03)


def test_pending_suggestions_and_failures():
    ledger = Ledger(MultiObjectiveSearcher(SPACE, seed=0))
    for i in range(7):
        suggestion = ledger.ask()
        values = (np.nan, 1.0) if i == 3 else circles(suggestion.config).values
        ledger.tell(Observation(suggestion.config, None, values=values, number=suggestion.number))
    batch = [ledger.ask().config["x"] for _ in range(3)]
    assert len({tuple(x) for x in batch}) == 3


def test_rungs_rank_by_one_objective():
    schedule = ASHA(RandomSearcher(SPACE), max_resource=3)
    with pytest.raises(ValueError, match="expected one objective, as rungs rank by one"):
        run(lambda job: report(values=[1.0, 2.0]), schedule, jobs=2)
