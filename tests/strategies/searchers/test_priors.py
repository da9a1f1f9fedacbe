"""What is said of the optimum beforehand: it helps where it is right, and is outvoted where not."""

import numpy as np
import pytest

from strategies import AutoSearcher, Ledger
from strategies.observation import Observation
from strategies.searchers.bayes import BayesSearcher
from strategies.space import Categorical, Float, Int, Ordinal, SearchSpace
from strategies.surrogates.optimum_prior import OptimumPrior

#: Trials that a search has, and those after which a right prior has been of use.
_ALL, _FEW = 30, 8
OPTIMUM = {"a": 0.85, "b": 0.2, "kind": "z"}


def loss(config):
    away = (config["a"] - OPTIMUM["a"]) ** 2 + (config["b"] - OPTIMUM["b"]) ** 2
    return away + 0.3 * (config["kind"] != "z") + 0.1 * np.sin(25 * config["a"]) ** 2


def believed(a, b, weights):
    return SearchSpace(
        {
            "a": Float(0, 1, default=a, spread=0.07),
            "b": Float(0, 1, default=b, spread=0.07),
            "kind": Categorical(["x", "y", "z"], weights=weights),
        }
    )


RIGHT = believed(0.8, 0.25, [1, 1, 8])
WRONG = believed(0.1, 0.9, [8, 1, 0])
NONE = SearchSpace({"a": Float(0, 1), "b": Float(0, 1), "kind": Categorical(["x", "y", "z"])})


def searched(space, trials, searcher=BayesSearcher, seed=0, **options):
    ledger = Ledger(searcher(space, seed=seed, **options))
    for _ in range(trials):
        asked = ledger.ask()
        ledger.tell(Observation(asked.config, loss(asked.config), number=asked.number))
    return ledger


def medians(space, trials, **options):
    return np.median([searched(space, trials, seed=s, **options).best.value for s in range(3)])


def test_a_right_prior_helps_and_a_wrong_one_washes_out():
    assert medians(RIGHT, _FEW) < 0.3 * medians(NONE, _FEW)
    # Where the wrong one points to, losses are above 1; without one it takes 15 trials to 0.025.
    assert medians(WRONG, 4) > 1.0
    assert medians(WRONG, _ALL) < 0.03


def test_without_its_power_the_prior_does_not_enter_the_acquisition():
    """The suggestion of the model, from the same results, goes where the prior is."""
    rng = np.random.default_rng(1)
    configs = [NONE.sample(rng) for _ in range(6)]
    history = [Observation(c, loss(c) + 0.01 * n, number=n) for n, c in enumerate(configs)]
    places = {}
    for decay in (0.0, 10.0, 1000.0):
        searcher = BayesSearcher(WRONG, seed=0, decay=decay)
        found = [searcher.propose(n, history, []) for n in range(10, 16)]
        made = [each.config for each in found if each.note["origin"] == "model"]
        places[decay] = np.mean([abs(c["a"] - 0.1) + abs(c["b"] - 0.9) for c in made])
    assert places[1000.0] < 0.1 < places[0.0]
    assert places[1000.0] <= places[10.0] <= places[0.0]


def test_the_default_searcher_uses_it():
    ledger = searched(RIGHT, 6, AutoSearcher)
    asked = ledger.ask()
    assert asked.note["searcher"] == "BayesSearcher"
    assert asked.config == BayesSearcher(RIGHT).propose(6, ledger.history, []).config


@pytest.fixture
def every():
    return SearchSpace(
        {
            "f": Float(1e-3, 1.0, log=True, shape=(2,), default=0.1, spread=0.2),
            "g": Float(0.0, 1.0, step=0.1, default=0.3, spread=0.1),
            "i": Int(1, 64, log=True, default=8, spread=0.1),
            "o": Ordinal([1, 2, 4], default=2, spread=0.3),
            "c": Categorical(["x", "y", "z"], weights=[1, 0, 3]),
            "free": Float(0, 1),
        }
    )


def test_the_density_is_that_of_the_draws(every):
    """Two bins of each marginal: their log ratio is that of the frequencies."""
    rng = np.random.default_rng(0)
    units = np.stack([every.encode(every.sample(rng)) for _ in range(2000)])
    where = every.slices["f"].start
    near, far = units[:, where] < 2 / 3 + 0.02, abs(units[:, where] - 0.9) < 0.02
    near &= units[:, where] > 2 / 3 - 0.02
    point = np.stack([every.rest, every.rest])
    point[1, where] = 0.9
    drop = np.diff(every.log_prior(point))[0]
    assert drop == pytest.approx(np.log(far.sum() / near.sum()), abs=0.25)
    kinds = units[:, every.slices["c"]].sum(axis=0)
    assert kinds[1] == 0
    assert kinds[0] / kinds[2] == pytest.approx(1 / 3, abs=0.05)
    assert every.log_prior(every.rest[None])[0] == 0.0
    assert every.informed
    assert not NONE.informed


def test_its_slope_is_the_derivative(every):
    unit, step = np.clip(every.rest + 0.05, 0, 1), 1e-6
    slope = every.log_prior_slope(unit)
    for k in np.flatnonzero(every.differentiable):
        moved = np.stack([unit, unit])
        moved[0, k] -= step
        moved[1, k] += step
        assert slope[k] == pytest.approx(np.diff(every.log_prior(moved))[0] / (2 * step), abs=1e-6)


def test_without_it_draws_are_uniform(every):
    free = every.uninformed()
    assert not free.informed
    assert free.default() == every.default()
    units = np.stack([free.encode(free.sample(np.random.default_rng(n))) for n in range(400)])
    kinds = units[:, free.slices["c"]].mean(axis=0)
    np.testing.assert_allclose(kinds, 1 / 3, atol=0.1)
    assert units[:, 0].min() < 0.05
    assert units[:, 0].max() > 0.95


def test_a_belief_keeps_a_rest_of_doubt(every):
    """Nothing is ruled out: the worst place has a hundredth of the best one's density."""
    optimum = OptimumPrior(every, 10.0)
    units = np.stack([every.rest, every.rest, every.snap(np.zeros((1, every.dimension)))[0]])
    units[1, every.slices["c"]] = [0, 1, 0]
    values = optimum.log(units)
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(values[1:], np.log(0.01 / 1.01), atol=1e-3)
    slope, unit, step = optimum.log_slope(every.rest + 0.1), every.rest + 0.1, 1e-6
    moved = np.stack([unit, unit])
    moved[:, 0] += [-step, step]
    assert slope[0] == pytest.approx(np.diff(optimum.log(moved))[0] / (2 * step), rel=1e-4)
    assert optimum.power(40) == 0.25


def test_what_is_inactive_costs_nothing():
    """Also where its default is not its weightiest choice."""
    space = SearchSpace(
        {
            "net": Categorical(["deep", "wide"], weights=[1, 3], default="deep"),
            "act": Categorical(["x", "y"], weights=[1, 9], default="x", when={"net": ["wide"]}),
            "depth": Float(0, 1, default=0.5, spread=0.1, when={"net": ["deep"]}),
        }
    )
    configs = [
        {"net": "wide", "act": "y"},
        {"net": "wide", "act": "x"},
        {"net": "deep", "depth": 0.5},
        {"net": "deep", "depth": 0.6},
    ]
    found = space.log_prior(np.stack([space.encode(config) for config in configs]))
    np.testing.assert_allclose(found, [0, -np.log(9), -np.log(3), -np.log(3) - 0.5], atol=1e-9)
    assert space.decode(space.likeliest()) == configs[0]
    np.testing.assert_array_equal(OptimumPrior(space, 1.0).likeliest[0], space.likeliest())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(0, 1, default=1.5, spread=0.1), r"'default': expected a number in \[0"),
        (lambda: Int(1, 9, default=12, spread=0.1), r"'default': expected an integer in \[1, 9\]"),
        (lambda: Ordinal([1, 2], default=3, spread=0.1), r"'default': expected one of \[1, 2\]"),
        (lambda: Float(0, 1, spread=0.1), "'default': expected a value"),
        (lambda: Float(0, 1, default=0.5, spread=-1), "'spread': expected a positive number"),
        (lambda: Categorical(["a", "b"], weights=[1]), "'weights': expected 2 weights"),
        (lambda: BayesSearcher(NONE, decay=-1), "'decay': expected a number >= 0, received -1"),
        (lambda: BayesSearcher(NONE, decay="x"), "'decay': expected a number >= 0, received 'x'"),
    ],
)
def test_a_prior_outside_the_domain_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
