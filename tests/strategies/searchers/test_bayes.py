"""The Bayesian searcher: it learns, with gradients faster, and depends on its history only."""

from dataclasses import replace

import numpy as np
import pytest

from strategies.ledger import Ledger
from strategies.observation import Observation
from strategies.searchers.bayes import BayesSearcher
from strategies.space import Categorical, Choice, Float, Int, Ordinal, SearchSpace
from strategies.surrogates.acquisition import log_expected_improvement

CENTRE = np.array([0.2, 0.5, 0.8])


def bowl(config):
    offset = np.array([config[name] for name in "abc"]) - CENTRE
    slope = 2 * np.array([1.0, 4.0, 9.0]) * offset
    value = float(slope @ offset / 2)
    return value, dict(zip("abc", slope.tolist(), strict=True))


def run(ledger, trials, *, gradients):
    for _ in range(trials):
        suggestion = ledger.ask()
        value, gradient = bowl(suggestion.config)
        gradient = gradient if gradients else None
        ledger.tell(
            Observation(suggestion.config, value, gradient=gradient, number=suggestion.number)
        )
    return ledger.best.value


@pytest.fixture
def cube():
    return SearchSpace({name: Float(0, 1) for name in "abc"})


@pytest.fixture
def mixed():
    return SearchSpace(
        {
            "lr": Float(1e-4, 1.0, log=True),
            "width": Int(4, 64, log=True),
            "batch": Ordinal([16, 32, 64, 128]),
            "kind": Categorical(["relu", "tanh", "gelu"]),
        }
    )


def mixed_loss(config):
    near = (np.log10(config["lr"]) + 2) ** 2 + (np.log2(config["width"]) - 4) ** 2
    return float(near + abs(config["batch"] - 64) / 32 + 3 * (config["kind"] != "tanh"))


def test_gradients_reach_the_optimum_in_a_dozen_trials(cube):
    assert run(Ledger(BayesSearcher(cube, seed=1)), 12, gradients=True) < 1e-3


def test_without_gradients_it_beats_the_startup_points(cube):
    ledger = Ledger(BayesSearcher(cube, seed=1))
    start = run(ledger, 4, gradients=False)
    assert run(ledger, 12, gradients=False) < 0.2 * start


def test_mixed_space(mixed):
    ledger = Ledger(BayesSearcher(mixed, seed=0))
    for _ in range(25):
        suggestion = ledger.ask()
        value = mixed_loss(suggestion.config)
        ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
    rng = np.random.default_rng(0)
    random = [min(mixed_loss(mixed.sample(rng)) for _ in range(25)) for _ in range(100)]
    assert ledger.best.value < np.quantile(random, 0.25)


def test_discrete_space_is_never_tried_twice_and_may_run_out():
    space = SearchSpace({"a": Ordinal([1, 2, 3]), "b": Categorical(["x", "y", "z"])})
    ledger = Ledger(BayesSearcher(space, seed=0))
    seen = set()
    for _ in range(9):
        suggestion = ledger.ask()
        seen.add(tuple(suggestion.config.values()))
        value = suggestion.config["a"] + (suggestion.config["b"] == "x")
        ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
    assert len(seen) == 9
    assert space.validate(ledger.ask().config)


@pytest.mark.parametrize("gradient", [None, {"x": 1.0, "y": 1.0}])
def test_a_corner_of_the_box_is_tried_once(gradient):
    ledger = Ledger(
        BayesSearcher(SearchSpace({"x": Float(0.0, 1.0), "y": Float(0.1, 1.0, log=True)}))
    )
    for _ in range(16):
        asked = ledger.ask()
        value = asked.config["x"] + asked.config["y"]
        ledger.tell(Observation(asked.config, value, gradient, number=asked.number))
    places = [tuple(item.config.values()) for item in ledger.history]
    assert len(set(places)) == len(places)
    assert ledger.best.value == pytest.approx(0.1)


def test_suggestions_depend_on_the_results_and_not_on_their_order(cube):
    ledger = Ledger(BayesSearcher(cube, seed=3))
    run(ledger, 7, gradients=True)
    history = ledger.history
    first = ledger.searcher.propose(7, history, [])
    again = BayesSearcher(cube, seed=3).propose(7, history[::-1], [])
    assert first.config == again.config


def test_what_is_drawn_depends_on_the_seed(cube):
    first, second = (BayesSearcher(cube, seed=seed).propose(0, [], []) for seed in (3, 4))
    assert first.config != second.config


def test_pending_suggestions_are_avoided(cube):
    ledger = Ledger(BayesSearcher(cube, seed=0))
    run(ledger, 6, gradients=False)
    batch = np.array([list(ledger.ask().config.values()) for _ in range(4)])
    distances = np.linalg.norm(batch[:, None] - batch[None], axis=-1) + np.eye(4)
    assert distances.min() > 1e-3


def test_failures_and_nan_are_survived(cube):
    ledger = Ledger(BayesSearcher(cube, seed=0))
    for i in range(10):
        suggestion = ledger.ask()
        value, gradient = bowl(suggestion.config)
        if i % 3 == 2:
            value, gradient = float("nan"), {"a": float("nan")}
        ledger.tell(
            Observation(suggestion.config, value, gradient=gradient, number=suggestion.number)
        )
    assert np.isfinite(ledger.best.value)


def test_all_failed_is_survived(cube):
    ledger = Ledger(BayesSearcher(cube, seed=0))
    for _ in range(6):
        suggestion = ledger.ask()
        ledger.tell(Observation(suggestion.config, None, number=suggestion.number))
    assert cube.validate(ledger.ask().config)


def test_constant_objective_is_survived(mixed):
    ledger = Ledger(BayesSearcher(mixed, seed=0))
    for _ in range(8):
        suggestion = ledger.ask()
        ledger.tell(Observation(suggestion.config, 1.0, number=suggestion.number))
    assert mixed.validate(ledger.ask().config)


def test_gradient_known_to_be_unreliable_is_ignored(cube):
    searcher = BayesSearcher(cube, seed=0)
    lied, plain = [], []
    rng = np.random.default_rng(0)
    for number in range(8):
        config = cube.sample(rng)
        value, gradient = bowl(config)
        lie = {name: -50 * slope for name, slope in gradient.items()}
        lied.append(Observation(config, value, gradient=lie, gradient_error=np.inf, number=number))
        plain.append(Observation(config, value, gradient={}, gradient_error=np.inf, number=number))
    # Its presence selects the smooth transformation of the values; its content must not matter.
    honest = [
        Observation(o.config, o.value, gradient=bowl(o.config)[1], gradient_error=np.inf, number=n)
        for n, o in enumerate(plain)
    ]
    assert searcher.propose(8, lied, []).config == searcher.propose(8, honest, []).config


def noisy_belief(space, count=30):
    """What a searcher thinks after so many noisy values."""
    rng = np.random.default_rng(0)
    history = []
    for number in range(count):
        config = space.sample(rng)
        value = bowl(config)[0] + float(rng.normal())
        history.append(Observation(config, value, number=number, point=space.point(config)))
    return BayesSearcher(space, seed=0)._believe(history, [], np.random.default_rng(1))


def test_noise_is_partly_the_configurations_own(cube):
    belief = noisy_belief(cube)
    process, own = belief.process, belief.own**2
    assert 0 < own < process.noise
    # The same as a process whose covariance has the own variance on its diagonal.
    matern = np.stack([covariances(process, row) for row in process.rows.x])
    ours = matern + own * np.eye(len(matern))
    rest = (process.noise - own) * np.eye(len(matern))
    y = (matern + process.noise * np.eye(len(matern))) @ process.weights
    assert belief.best == pytest.approx(np.min(ours @ np.linalg.solve(ours + rest, y)), rel=1e-5)
    point = np.array([0.3, 0.3, 0.3])
    cross = covariances(process, point)
    variance = process.signal + own - cross @ np.linalg.solve(ours + rest, cross)
    mean = cross @ process.weights
    expected = log_expected_improvement(mean, np.sqrt(variance), belief.best)
    assert belief.score(point[None])[0] == pytest.approx(expected, rel=1e-5)


def test_noise_is_all_chance_while_values_are_few(cube):
    assert noisy_belief(cube, 19).own == 0
    assert noisy_belief(cube, 20).own > 0


def covariances(process, point):
    r = np.linalg.norm((point - process.rows.x) / process.scales, axis=1)
    return process.signal * (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r)


def test_climbing_ends_where_no_neighbour_is_better(cube):
    searcher, belief = BayesSearcher(cube, seed=0), noisy_belief(cube)
    start = np.array([0.3, 0.4, 0.6])
    before = belief.score(start[None])[0]
    point, score = searcher._climb(belief, start, before, (np.zeros(3), np.ones(3)))
    assert score == pytest.approx(belief.score(point[None])[0], abs=1e-8)
    around = np.clip(point + 1e-2 * np.r_[np.eye(3), -np.eye(3)], 0, 1)
    assert score > before
    # A neighbour beyond the edge is the point itself, and equal but for rounding.
    assert score >= belief.score(around).max() - 1e-12


def test_conditional_space():
    space = SearchSpace(
        {"model": Choice({"a": {"x": Float(0, 1)}, "b": {"y": Float(0, 1), "n": Int(1, 9)}})}
    )
    ledger = Ledger(BayesSearcher(space, seed=0))
    for _ in range(12):
        suggestion = ledger.ask()
        model = suggestion.config["model"]
        value = 1.0 + model["a"]["x"] if model["kind"] == "a" else (model["b"]["y"] - 0.3) ** 2
        ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
    assert ledger.best.config["model"]["kind"] == "b"
    assert ledger.best.value < 0.02


def test_values_at_different_resources_are_not_mixed(cube):
    searcher = BayesSearcher(cube, seed=0)
    rng = np.random.default_rng(1)
    low = [
        Observation(cube.sample(rng), float(rng.normal()), resource=1.0, number=i)
        for i in range(10)
    ]
    high = []
    for i in range(6):
        config = cube.sample(rng)
        high.append(Observation(config, bowl(config)[0], resource=9.0, number=10 + i))
    # What was stopped early is compared at its own resource, whatever its scale there.
    both = searcher.propose(16, low + high, []).config
    other = [replace(item, value=128.0 * item.value) for item in low]
    assert both == searcher.propose(16, other + high, []).config


def test_startup_must_be_positive(cube):
    with pytest.raises(ValueError, match=r"'startup': expected an integer >= 1, received 0"):
        BayesSearcher(cube, startup=0)


def test_what_was_stopped_early_is_not_suggested_again():
    """Each trial is known at one resource only; the better half goes on to the higher one."""
    space = SearchSpace({"x": Float(0, 1), "y": Float(0, 1)})
    ledger, places = Ledger(BayesSearcher(space)), []
    for number in range(24):
        asked = ledger.ask()
        x, y = asked.config["x"], asked.config["y"]
        # What looks good to a model of the long trainings alone is stopped each time.
        resource = 9.0 if number < 6 else 1.0
        value = (x - 0.3) ** 2 + (y - 0.6) ** 2
        places.append([x, y])
        ledger.tell(Observation(asked.config, value, number=number, resource=resource))
    apart = np.linalg.norm(np.array(places)[:, None] - np.array(places), axis=2)
    assert np.sort(apart[np.triu_indices(24, 1)])[5] > 1e-3


def told(space, objective, count):
    rng = np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(count)]
    return [Observation(config, **objective(config), number=n) for n, config in enumerate(configs)]


def origins(searcher, history, count=20):
    proposed = [searcher.propose(number, history, []) for number in range(100, 100 + count)]
    return [suggestion.note["origin"] for suggestion in proposed]


def test_what_the_process_cannot_predict_is_partly_drawn(cube):
    searcher, rng = BayesSearcher(cube, seed=0), np.random.default_rng(2)
    chaos = told(cube, lambda config: {"value": float(rng.normal())}, 25)
    assert 4 <= origins(searcher, chaos).count("draw") <= 16
    smooth = told(cube, lambda config: {"value": bowl(config)[0]}, 25)
    assert origins(searcher, smooth).count("draw") <= 2
    # Derivatives tell what values do not.
    graded = told(cube, lambda config: {"value": 0.0, "gradient": {"a": float(rng.normal())}}, 25)
    assert "draw" not in origins(searcher, graded, 8)


def test_draws_are_the_spread_ones_of_the_start(cube):
    searcher, rng = BayesSearcher(cube, seed=0), np.random.default_rng(2)
    chaos = told(cube, lambda config: {"value": float(rng.normal())}, 25)
    drawn = [s for n in range(8) if (s := searcher.propose(n, chaos, [])).note["origin"] == "draw"]
    assert drawn
    for suggestion in drawn:
        assert suggestion.config == searcher.propose(suggestion.number, [], []).config


def test_successive_halving_by_somebody_else_finds_the_best_region():
    """Each trial is told once, where it was stopped: few go far, and where they are is best."""
    space = SearchSpace({"x": Float(0, 1), "y": Float(0, 1), "kind": Categorical(["a", "b", "c"])})
    ledger, rungs, best = Ledger(BayesSearcher(space, seed=0)), {1: [], 3: [], 9: []}, np.inf
    for number in range(24):
        config = ledger.ask().config
        loss = (config["x"] - 0.3) ** 2 + (config["y"] - 0.8) ** 2 + 0.2 * (config["kind"] != "b")
        for rung, seen in rungs.items():
            seen.append(loss + 2.0 / rung)
            if seen[-1] > np.percentile(seen, 100 / 3):
                break
        if rung == 9:
            best = min(best, loss)
        ledger.tell(Observation(config, seen[-1], number=number, resource=float(rung)))
    assert best < 0.02
