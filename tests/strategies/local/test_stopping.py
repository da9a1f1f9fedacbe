"""Searches that end before their trials are used up."""

import os
import signal
import threading
import time

import pytest

from strategies import BayesSearcher, Float, Observation, RandomSearcher, SearchSpace, Stop, report
from strategies.local import minimize
from strategies.schedulers import ASHA, run
from strategies.stopping import Watch
from strategies.surrogates.expected_gain import expected_gain

SPACE = SearchSpace({"x": Float(-1.0, 1.0)})


def bowl(config):
    return config["x"] ** 2


def searched(stop, objective=bowl, **options):
    return minimize(objective, SPACE, stop=stop, searcher=RandomSearcher(SPACE), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Stop: expected one of"),
        ({"seconds": 0}, "'seconds': expected a positive"),
        ({"cost": float("nan")}, "'cost': expected a positive"),
        ({"patience": 0}, "'patience': expected an integer >= 1"),
        ({"gain": -1.0}, "'gain': expected a positive"),
    ],
)
def test_a_budget_of_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Stop(**options)


def test_a_search_needs_an_end():
    with pytest.raises(ValueError, match="'trials', 'stop': expected one of them"):
        minimize(bowl, SPACE)
    with pytest.raises(ValueError, match="'stop': expected a Stop, received 3"):
        minimize(bowl, SPACE, stop=3)


def test_time_and_cost():
    result = searched(Stop(seconds=0.2), lambda config: time.sleep(0.06) or bowl(config))
    assert 1 <= len(result.history) <= 4
    assert "seconds of 0.2 are over" in result.stopped
    result = searched(Stop(cost=10.0), lambda config: report(bowl(config), cost=3.0), trials=50)
    assert len(result.history) == 4
    assert result.stopped == "a cost of 12 of 10 is spent"
    # It counts what was paid before.
    more = minimize(bowl, SPACE, stop=Stop(cost=12.0), searcher=result.ledger)
    assert len(more.history) == 4


def test_patience():
    values = iter([3.0, 2.0, 2.5, 2.0, 5.0, 0.0])
    result = searched(Stop(patience=3), lambda config: next(values))
    assert len(result.history) == 5
    assert result.stopped == "3 trials without a better one"
    assert searched(Stop(patience=3), trials=2).stopped is None


def test_patience_with_constraints_and_several_objectives():
    space_of = [(4.0, -1.0), (1.0, 1.0), (1.0, 2.0)]
    history = [
        Observation({}, value, constraints={"a": c}, number=i)
        for i, (value, c) in enumerate(space_of)
    ]
    watch = Watch(Stop(patience=2), SPACE)
    assert watch.over(history)
    assert not Watch(Stop(patience=3), SPACE).over(history)
    front = [(1.0, 3.0), (3.0, 1.0), (2.0, 2.0), (2.5, 2.5)]
    history = [Observation({}, None, values=v, number=i) for i, v in enumerate(front)]
    assert Watch(Stop(patience=1), SPACE).over(history)
    assert not Watch(Stop(patience=1), SPACE).over(history[:3])


def test_the_expected_gain():
    searcher = BayesSearcher(SPACE, seed=0)
    shown = []
    result = minimize(
        bowl,
        SPACE,
        trials=60,
        stop=Stop(gain=1e-4),
        searcher=searcher,
        callbacks=[lambda trial: shown.append(trial.number)],
    )
    assert 10 <= len(result.history) < 40
    assert "one more trial is expected to gain" in result.stopped
    assert "less than 0.0001" in result.stopped
    assert result.best_value < 1e-3
    few = result.history[:9]
    assert expected_gain(SPACE, few) is None
    # In the units of the objective.
    history = result.history
    times = [
        Observation(o.config, 100 * o.value, number=o.number, point=o.point) for o in history[:12]
    ]
    small = expected_gain(SPACE, history[:12])
    assert expected_gain(SPACE, times) == pytest.approx(100 * small, rel=0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_with_the_result_so_far(tmp_path, workers):
    def objective(config):
        with lock:
            calls.append(1)
            sixth = len(calls) == 6
        if sixth:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return bowl(config)

    calls, lock = [], threading.Lock()
    path = tmp_path / "state.json"
    result = searched(None, objective, trials=50, workers=workers, state_path=path)
    assert result.stopped == "it was interrupted"
    assert len(result.history) in (4, 5, 6)
    assert result.ledger.pending
    resumed = minimize(bowl, SPACE, trials=8, state_path=path, searcher=RandomSearcher(SPACE))
    assert [item.number for item in resumed.history] == list(range(8))
    assert resumed.stopped is None


def test_a_callback_ends_it():
    result = searched(None, trials=50, callbacks=[lambda trial: trial.number == 2])
    assert (len(result.history), result.stopped) == (3, "a callback asked for it")


def test_schedulers():
    def schedule():
        return ASHA(RandomSearcher(SPACE), max_resource=4, eta=2)

    done = run(lambda job: report(bowl(job.config), cost=1.0), schedule(), stop=Stop(cost=7.0))
    assert done.costs() == 7.0
    assert done.stopped == "a cost of 7 of 7 is spent"
    done = run(lambda job: bowl(job.config), schedule(), stop=Stop(patience=5), jobs=200)
    assert "without a better one" in done.stopped
    done = run(lambda job: (_ for _ in ()).throw(KeyboardInterrupt), schedule(), jobs=3)
    assert done.stopped == "it was interrupted"
    assert len(done.pending()) == 1


def test_rungs_rank_the_feasible_first():
    def objective(job):
        # The lower the value, the more it violates.
        return report(job.config["x"], constraints={"a": -job.config["x"]})

    schedule = run(objective, ASHA(RandomSearcher(SPACE), max_resource=4, eta=2), jobs=30)
    assert all(item.feasible for item in schedule.incumbents.values())
    first = schedule.incumbents[1].value
    lowest = [c.results[0].value for c in schedule.candidates.values() if c.results[0].feasible]
    assert first == min(lowest)
