"""Whether intermediate losses rank as final ones do."""

import math
import warnings

import numpy as np
import pytest

from strategies.schedulers import ASHA, Hyperband, RankFlipWarning, rank_flips, run
from strategies.searchers import RandomSearcher
from strategies.space import Float, SearchSpace

SPACE = SearchSpace({"x": Float(0, 1)})


def test_by_hand():
    curves = {"a": {1: 1.0, 9: 3.0}, "b": {1: 2.0, 9: 2.0}, "c": {1: 3.0, 9: 4.0}, "d": {1: 0.0}}
    found = rank_flips(curves)
    # a-b changes, a-c and b-c do not; d has no end.
    assert found.shares == pytest.approx({1.0: 1 / 3})
    assert found.pairs == {1.0: 3}
    assert math.isnan(found.worst)
    assert not found.unsafe


def test_every_pair_is_counted_once():
    rng = np.random.default_rng(2)
    curves = rng.integers(0, 4, (9, 2)).astype(float)  # with ties before and at the end
    told = [(a, b) for i, a in enumerate(curves) for b in curves[:i] if a[1] != b[1]]
    flips = [0.5 if a[0] == b[0] else (a[0] < b[0]) != (a[1] < b[1]) for a, b in told]
    found = rank_flips(curves)
    assert found.pairs[1.0] == len(told)
    assert found.shares[1.0] == pytest.approx(np.mean(flips))


def test_a_guess_is_a_half_and_the_end_itself_is_none():
    rng = np.random.default_rng(0)
    curves = rng.standard_normal((60, 3))
    curves[:, 1] = 2 * curves[:, 2]
    found = rank_flips(curves)
    assert found.shares[1.0] == pytest.approx(0.5, abs=0.1)
    assert found.shares[2.0] == 0.0
    assert found.unsafe


@pytest.mark.parametrize("misleading", [True, False])
@pytest.mark.parametrize("kind", [Hyperband, ASHA])
def test_a_scheduler_warns_once_where_rungs_mislead(kind, misleading):
    def objective(job):
        x = job.config["x"]
        return -x if misleading and job.resource < 9 else x

    more = {"configurations": 150} if kind is ASHA else {"iterations": 6}
    scheduler = kind(RandomSearcher(SPACE), max_resource=9, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(objective, scheduler)
    said = [w for w in caught if issubclass(w.category, RankFlipWarning)]
    assert len(said) == misleading
    assert (rank_flips(scheduler).inverted is not None) == misleading


def test_a_scheduler_does_not_warn_where_rungs_only_say_little():
    def objective(job):
        return job.config["x"] + math.sin(1e5 * job.config["x"]) / job.resource

    with warnings.catch_warnings():
        warnings.simplefilter("error", RankFlipWarning)
        for seed in range(4):
            run(objective, Hyperband(RandomSearcher(SPACE, seed=seed), 27, iterations=2))


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least two resources"):
        rank_flips([[1.0], [2.0]])
    with pytest.raises(ValueError, match="expected two axes"):
        rank_flips([1.0, 2.0])
    with pytest.raises(ValueError, match="expected numbers"):
        rank_flips({"a": {1: "low", 2: 1.0}})
