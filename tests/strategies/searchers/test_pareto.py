"""Hypervolume against geometry and Monte Carlo; the cost-aware searcher against random search."""

import numpy as np
import pytest

from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers.pareto import ParetoSearcher
from strategies.searchers.random import RandomSearcher
from strategies.space import Float, SearchSpace
from strategies.surrogates.hypervolume import hypervolume, improvement, pareto_front

REFERENCE = np.array([1.0, 1.0])


def test_front_and_area():
    points = np.array([[0.5, 0.5], [0.2, 0.8], [0.6, 0.6], [0.8, 0.1], [0.2, 0.8], [2.0, 0.0]])
    np.testing.assert_array_equal(
        pareto_front(points), [[0.2, 0.8], [0.5, 0.5], [0.8, 0.1], [2.0, 0.0]]
    )
    # Strips of the staircase: 0.3 x 0.2, 0.3 x 0.5, 0.2 x 0.9.
    assert hypervolume(points, REFERENCE) == pytest.approx(0.06 + 0.15 + 0.18)
    assert hypervolume(np.empty((0, 2)), REFERENCE) == 0


def test_expected_improvement_is_its_sampled_mean():
    rng = np.random.default_rng(0)
    points = rng.random((6, 2))
    mean, deviation = np.array([[0.3, 0.4], [0.1, 0.9], [1.2, 0.2]]), np.full((3, 2), 0.3)
    expected = improvement(points, REFERENCE)(mean, deviation)
    before = hypervolume(points, REFERENCE)
    for m, d, value in zip(mean, deviation, expected, strict=True):
        draws = m + d * rng.standard_normal((4000, 2))
        gains = [hypervolume(np.r_[points, draw[None]], REFERENCE) - before for draw in draws]
        assert value == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(4000))


def test_expected_improvement_of_a_log_normal_objective():
    rng = np.random.default_rng(1)
    points = rng.random((6, 2))
    mean, deviation = np.array([[-1.0, 0.4], [-2.0, 0.9], [0.3, 0.2]]), np.full((3, 2), 0.4)
    expected = improvement(points, REFERENCE, (True, False))(mean, deviation)
    before = hypervolume(points, REFERENCE)
    for m, d, value in zip(mean, deviation, expected, strict=True):
        draws = m + d * rng.standard_normal((4000, 2))
        draws[:, 0] = np.exp(draws[:, 0])
        gains = [hypervolume(np.r_[points, draw[None]], REFERENCE) - before for draw in draws]
        assert value == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(4000))


def test_expected_improvement_without_points():
    gain = improvement(np.empty((0, 2)), REFERENCE)
    value = gain(np.array([[0.5, 0.5]]), np.full((1, 2), 1e-9))
    assert value == pytest.approx([0.25])


SPACE = SearchSpace({"size": Float(1.0, 1e3, log=True), "lr": Float(1e-4, 1.0, log=True)})


def scaling_task(config):
    """Loss falls with the size; the best learning rate is `size ** -0.5`; cost is the size."""
    size, lr = config["size"], config["lr"]
    return size**-0.3 + 0.3 * (np.log10(lr) + 0.5 * np.log10(size)) ** 2, size


def search(ledger, trials, task=scaling_task):
    points = []
    for _ in range(trials):
        suggestion = ledger.ask()
        value, cost = task(suggestion.config)
        points.append((value, np.log10(cost) / 3))
        ledger.tell(Observation(suggestion.config, value, cost=cost, number=suggestion.number))
    return hypervolume(np.array(points), np.array([1.2, 1.05]))


def test_larger_hypervolume_than_random_and_the_scaling_law():
    ledger = Ledger(ParetoSearcher(SPACE, seed=0))
    area = search(ledger, 40)
    random = [search(Ledger(RandomSearcher(SPACE, seed=seed)), 40) for seed in range(20)]
    assert area > max(random)
    law = ledger.searcher.scaling_laws(ledger.history)["lr"]
    assert law.exponent == pytest.approx(-0.5, abs=max(0.1, 2 * law.error))
    assert law.error < 0.1
    front = ledger.searcher.front(ledger.history)
    assert [o.value for o in front] == sorted((o.value for o in front), reverse=True)


def test_diverged_trainings_do_not_stretch_the_objective():
    def diverging(config):
        value, cost = scaling_task(config)
        return (value if config["lr"] < 0.3 else 1e6 * config["lr"]), cost

    area = search(Ledger(ParetoSearcher(SPACE, seed=1)), 30, diverging)
    random = [search(Ledger(RandomSearcher(SPACE, seed=seed)), 30, diverging) for seed in range(20)]
    assert area > max(random)


def test_few_trials_have_no_law():
    ledger = Ledger(ParetoSearcher(SPACE, seed=0))
    search(ledger, 2)
    assert ledger.searcher.scaling_laws(ledger.history) == {}


@pytest.mark.parametrize("cost", [None, 0.0, -1.0])
def test_a_trial_without_cost_is_named(cost):
    ledger = Ledger(ParetoSearcher(SPACE, seed=0))
    suggestion = ledger.ask()
    message = r"trial 0: 'cost': expected a positive number"
    with pytest.raises(ValueError, match=message):
        ledger.tell(Observation(suggestion.config, 1.0, cost=cost, number=0))
    assert [item.number for item in ledger.pending] == [0]


def test_pending_and_failed_trials():
    ledger = Ledger(ParetoSearcher(SPACE, seed=0))
    search(ledger, 6)
    batch = [ledger.ask() for _ in range(3)]
    assert len({repr(item.config) for item in batch}) == 3
    ledger.tell(Observation(batch[0].config, float("nan"), number=batch[0].number))
    assert SPACE.validate(ledger.ask().config)
