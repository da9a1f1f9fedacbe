"""Search from a log: better than the log's best, a flatter surrogate, nothing tried again."""

import numpy as np
import pytest

from strategies import Ledger, OfflineSearcher
from strategies.observation import Observation
from strategies.searchers.offline import _of_norm
from strategies.space import Categorical, Float, Ordinal, SearchSpace
from strategies.surrogates.network import Network

SPACE = SearchSpace(
    {
        "lr": Float(1e-4, 1.0, log=True),
        "width": Ordinal([8, 16, 32, 64]),
        "kind": Categorical(["relu", "tanh", "gelu"]),
    }
)


def loss(config):
    near = (np.log10(config["lr"]) + 2) ** 2 + 0.1 * (config["width"] != 32)
    return float(near + {"relu": 0.5, "tanh": 0.0, "gelu": 0.2}[config["kind"]])


@pytest.fixture(scope="module")
def log():
    """The worse half of a random search."""
    rng = np.random.default_rng(0)
    every = [SPACE.sample(rng) for _ in range(160)]
    worse = sorted(every, key=loss)[80:]
    return [Observation(config, loss(config)) for config in worse]


@pytest.fixture(scope="module")
def searcher():
    return OfflineSearcher(SPACE, seed=0, members=2)


def test_proposals_are_better_than_the_best_of_the_log(searcher, log):
    found = searcher.proposals(log, 8)
    assert min(map(loss, found)) < 0.5 * min(item.value for item in log)
    assert np.median([loss(config) for config in found]) < min(item.value for item in log)
    assert len({repr(config) for config in found}) == 8


def test_a_ledger_that_was_given_the_log_proposes_the_same(searcher, log):
    ledger = Ledger(OfflineSearcher(SPACE, seed=0, members=2))
    ledger.warm_start(log)
    asked = [ledger.ask() for _ in range(3)]
    assert [each.config for each in asked] == searcher.proposals(log, 3)
    predicted = [each.note["predicted"] for each in asked]
    assert predicted == sorted(predicted)


def test_with_too_little_it_draws_and_with_new_results_it_fits_again(searcher, log):
    assert (
        searcher.propose(0, log[:5], []).note["why"]
        == "the log has 5 usable results, 10 are needed"
    )
    failed = [Observation(item.config, None, status="failed") for item in log[9:]]
    with pytest.raises(ValueError, match=r"'log': expected at least 10 usable .* received 9"):
        searcher.proposals([*log[:9], *failed])
    before = searcher.propose(0, log, [])
    there = [Observation(before.config, 50.0, number=0), *log]
    assert searcher.propose(1, there, []).config != before.config


def test_the_penalty_is_the_derivative_of_the_norm():
    network, rng = Network((3, 4, 1)), np.random.default_rng(1)
    w, x = network.begin(rng, 2), rng.standard_normal((1, 6, 3)).repeat(2, axis=0)

    def norm(v):
        return np.linalg.norm(network.by_weights(v, x[0]).mean(axis=0))

    found, step = _of_norm(network, w, x), 1e-5
    for m in range(2):
        each = np.eye(network.count) * step
        wanted = [(norm(w[m] + e) - norm(w[m] - e)) / (2 * step) for e in each]
        np.testing.assert_allclose(found[m], wanted, atol=0.05)


def test_the_penalty_makes_the_prediction_flatter(log):
    slopes = []
    for sharpness in (0.0, 0.5):
        searcher = OfflineSearcher(SPACE, seed=0, members=2, sharpness=sharpness)
        units = np.stack([SPACE.encode(item.config) for item in log])
        target = np.array([item.value for item in log])
        target = (target - target.mean()) / target.std()
        network = Network((SPACE.dimension, 32, 32, 1))
        rng = np.random.default_rng(0)
        w = searcher._trained(network, units, target, rng)
        slopes.append(np.linalg.norm(network.by_weights(w[0], units - 0.5).mean(axis=0)))
    assert slopes[1] < 0.7 * slopes[0]


def test_options_are_checked_by_name():
    with pytest.raises(ValueError, match="'members': expected an integer >= 2, received 1"):
        OfflineSearcher(SPACE, members=1)
    with pytest.raises(ValueError, match="'sharpness': expected a number >= 0, received -1"):
        OfflineSearcher(SPACE, sharpness=-1)
    with pytest.raises(ValueError, match="'caution': expected a number >= 0, received 'x'"):
        OfflineSearcher(SPACE, caution="x")
