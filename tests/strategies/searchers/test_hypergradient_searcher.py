"""The hypergradient searcher: descent, discrete search, noise, missing gradients, timing."""

import math
from dataclasses import replace

import numpy as np
import pytest

from strategies import (
    Categorical,
    Choice,
    Float,
    HypergradientSearcher,
    Int,
    Observation,
    RandomSearcher,
    SearchSpace,
)
from strategies.ledger import Ledger

SIZE = 20
RNG = np.random.default_rng(0)
TARGET = RNG.uniform(0.2, 0.8, SIZE)
BASIS = np.linalg.qr(RNG.standard_normal((SIZE, SIZE)))[0]
MATRIX = BASIS @ np.diag(np.logspace(-2, 1, SIZE)) @ BASIS.T
WIDTH = math.log(1e8)
SPACE = SearchSpace(
    {
        "l2": Float(1e-6, 1e2, log=True, shape=(SIZE,)),
        "scale": Categorical(["bad", "good", "worse"]),
    }
)
OFFSET = {"bad": 0.1, "good": 0.0, "worse": 0.4}


def bowl(config):
    """An ill-conditioned quadratic in the logarithms, and an offset by the choice."""
    unit = np.log(np.array(config["l2"]) / 1e-6) / WIDTH
    away = MATRIX @ (unit - TARGET)
    value = float(0.5 * (unit - TARGET) @ away) + OFFSET[config["scale"]]
    return value, {"l2": away / (WIDTH * np.array(config["l2"]))}


def search(ledger, objective, count, workers=1, change=lambda number, observation: observation):
    """Run with a fixed number of suggestions pending, told in a scrambled order."""
    pending = []
    rng = np.random.default_rng(0)
    while len(ledger.history) < count:
        while len(pending) < workers:
            pending.append(ledger.ask())
        asked = pending.pop(int(rng.integers(len(pending))))
        value, gradient = objective(asked.config)
        ledger.tell(
            change(
                asked.number,
                Observation(asked.config, value, gradient, number=asked.number),
            )
        )
    return ledger.best and ledger.best.value


def test_descends_to_the_minimum_of_the_right_choice():
    ledger = Ledger(HypergradientSearcher(SPACE))
    assert search(ledger, bowl, 10) < 0.05
    assert search(ledger, bowl, 25) < 0.005
    assert ledger.best.config["scale"] == "good"
    assert search(Ledger(RandomSearcher(SPACE)), bowl, 200) > 0.2


def test_a_minimum_on_a_bound_is_reached():
    space = SearchSpace({"x": Float(0, 1, shape=(3,)), "y": Float(1e-3, 1, log=True)})

    def linear(config):
        x, y = np.array(config["x"]), config["y"]
        return float(x @ [1, -2, 0.5]) + y, {"x": np.array([1, -2, 0.5]), "y": 1.0}

    assert search(Ledger(HypergradientSearcher(space)), linear, 12) == pytest.approx(
        -2 + 1e-3, abs=1e-9
    )


@pytest.mark.parametrize("workers", [2, 4])
def test_pending_suggestions_are_all_different_and_useful(workers):
    ledger = Ledger(HypergradientSearcher(SPACE, seed=workers))
    assert search(ledger, bowl, 40, workers) < 0.02
    configs = [repr(item.config) for item in [*ledger.history, *ledger.pending]]
    assert len(set(configs)) == len(configs)


def test_history_may_come_in_any_order():
    ledger = Ledger(HypergradientSearcher(SPACE, seed=1))
    search(ledger, bowl, 15, workers=3)
    again = HypergradientSearcher(SPACE, seed=1)
    history, pending = ledger.history, ledger.pending
    proposed = ledger.searcher.propose(99, history, pending)
    assert again.propose(99, history[::-1], pending[::-1]) == proposed


def test_continues_from_a_file_as_if_never_stopped(tmp_path):
    whole, half = (
        Ledger(HypergradientSearcher(SPACE, seed=2)),
        Ledger(HypergradientSearcher(SPACE, seed=2)),
    )
    search(whole, bowl, 20)
    search(half, bowl, 9)
    half.save(tmp_path / "state.json")
    rest = Ledger(HypergradientSearcher(SPACE, seed=2))
    rest.restore(tmp_path / "state.json")
    search(rest, bowl, 20)
    assert [item.config for item in rest.history] == [item.config for item in whole.history]


def test_learns_from_points_that_it_did_not_suggest():
    ledger = Ledger(HypergradientSearcher(SPACE))
    near = SPACE.decode(np.concatenate([np.clip(TARGET + 0.02, 0, 1), [0, 1, 0]]))
    value, gradient = bowl(near)
    ledger.tell(Observation(near, value, gradient))
    assert search(ledger, bowl, 6) < value / 2
    steps = [item for item in ledger.history if item.note.get("move") == "step"]
    assert {item.note["chain"] for item in steps} == {steps[0].note["chain"]}


def test_failed_trials_shorten_the_step():
    def cliff(config):
        value, gradient = bowl(config)
        inside = config["l2"][0] < 1e-2 * 10 ** (0.3 * 8 / 2)
        return (value if inside else math.nan), gradient

    ledger = Ledger(HypergradientSearcher(SPACE))
    assert search(ledger, cliff, 30) < 0.2


def edge(config):
    """A bowl up to the edge of stability, and chaos behind it: values bounded, slopes not."""
    x = np.array(config["x"])
    away = x - 0.8
    value, slope = float(away @ away), 2 * away
    if (over := x.sum() - 2.1) > 0:
        phase = 1e7 * over
        return 2.0 + math.sin(phase), {"x": slope + 1e9 * math.cos(phase)}
    return value, {"x": slope}


def test_what_lies_behind_a_cliff_is_forgotten():
    # The minimum before the edge has all coordinates at 0.7, and the value 0.03.
    space = SearchSpace({"x": Float(0, 1, shape=(3,))})
    ledger = Ledger(HypergradientSearcher(space, first=[{"x": [0.5] * 3}, {"x": [0.9, 0.8, 0.9]}]))
    assert search(ledger, edge, 25) < 0.034
    # The chain that began there, whose slope promises anything, does not take the evaluations.
    chaotic = [item.note.get("chain") for item in ledger.history].count(1)
    assert chaotic <= 5


@pytest.mark.filterwarnings("error")
def test_a_chain_whose_start_is_lost_is_continued():
    ledger = Ledger(HypergradientSearcher(SPACE))
    search(ledger, bowl, 6)
    steps = [item for item in ledger.history if item.note["move"] == "step"]
    assert 1 < len(steps) < 6
    suggestion = HypergradientSearcher(SPACE).propose(6, steps, [])
    assert SPACE.validate(suggestion.config)


def test_nothing_but_failures_is_survived():
    ledger = Ledger(HypergradientSearcher(SPACE))
    assert search(ledger, lambda config: (math.nan, None), 8) is None
    assert len({repr(item.config) for item in ledger.history}) == 8


def test_partial_gradients_leave_the_rest_to_search():
    space = SearchSpace({"a": Float(0, 1, shape=(4,)), "b": Float(0, 1), "n": Int(1, 20)})

    def mixed(config):
        a = np.array(config["a"]) - 0.3
        rest = (config["b"] - 0.8) ** 2 + (config["n"] - 15) ** 2 / 100
        return float(a @ a) + rest, {"a": 2 * a}

    ledger = Ledger(HypergradientSearcher(space))
    assert search(ledger, mixed, 60) < 0.03
    best = ledger.best.config
    np.testing.assert_allclose(best["a"], 0.3, atol=1e-2)


def test_without_any_gradient_it_is_better_than_random():
    space = SearchSpace({"x": Float(-2, 2, shape=(4,)), "kind": Categorical(list("abc"))})

    def plain(config):
        return float(np.sum((np.array(config["x"]) - 0.7) ** 2)) + (config["kind"] != "b"), None

    ours = [search(Ledger(HypergradientSearcher(space, seed=s)), plain, 60) for s in range(5)]
    random = [search(Ledger(RandomSearcher(space, seed=s)), plain, 60) for s in range(5)]
    assert np.median(ours) < 0.5 * np.median(random)


def test_a_biased_and_noisy_gradient_still_helps():
    rng = np.random.default_rng(3)

    def biased(config):
        value, gradient = bowl(config)
        exact = gradient["l2"]
        noise = rng.standard_normal(SIZE) * np.linalg.norm(exact * config["l2"]) / SIZE**0.5
        return value, {"l2": 0.7 * exact + 0.3 * noise / config["l2"]}

    def known(number, observation):
        return replace(observation, gradient_error=0.4)

    assert search(Ledger(HypergradientSearcher(SPACE)), biased, 40) < 0.05
    assert search(Ledger(HypergradientSearcher(SPACE)), biased, 40, change=known) < 0.05


def test_gradients_that_do_not_predict_the_values_are_given_up():
    rng = np.random.default_rng(4)

    def misleading(config):
        value, gradient = bowl(config)
        return value, {"l2": rng.standard_normal(SIZE) * np.abs(gradient["l2"])}

    ledger = Ledger(HypergradientSearcher(SPACE))
    search(ledger, misleading, 60)
    late = [item.note["move"] for item in ledger.history[40:]]
    assert "step" not in late
    assert ledger.best.value < ledger.history[0].value / 2


def test_several_valleys_are_searched():
    space = SearchSpace({"x": Float(0, 1, shape=(2,))})
    wells = np.array([[0.5, 0.5], [0.15, 0.8], [0.85, 0.2]])
    depth = np.array([0.6, 1.0, 0.8])

    def valleys(config):
        away = np.array(config["x"]) - wells
        parts = depth * np.exp(-np.sum(away**2, axis=1) / 0.05)
        slope = np.sum(parts[:, None] * away, axis=0) * 2 / 0.05
        return -float(parts.sum()), {"x": slope}

    found = [search(Ledger(HypergradientSearcher(space, seed=s)), valleys, 25) for s in range(5)]
    assert np.median(found) < -0.98


def test_a_sum_of_ripples_is_searched_by_jumps_that_promise_no_more_than_values_differ():
    space = SearchSpace({"x": Float(-5, 5, shape=(4,))})
    low = np.array([2.1, -1.3, 3.4, -2.6])

    def ripples(config):
        away = np.array(config["x"]) - low
        slope = 2 * away + 20 * np.pi * np.sin(2 * np.pi * away)
        return float(np.sum(away**2 - 10 * np.cos(2 * np.pi * away) + 10)), {"x": slope}

    ledger = Ledger(HypergradientSearcher(space))
    assert search(ledger, ripples, 25) < 1.0  # the next valleys end near 1
    values = np.array([item.value for item in ledger.history])
    jumps = [item for item in ledger.history if str(item.note.get("way")).startswith("additive")]
    assert jumps
    for jump in jumps:
        before = values[: jump.number]
        differ = np.median(before) - before.min() or np.ptp(before)
        assert jump.note["promise"] <= differ * (1 + 1e-9)


def test_zero_gradients_say_nothing():
    space = SearchSpace({"l2": Float(1e-3, 1, log=True), "rate": Float(1e-4, 1, log=True)})

    def blind(config):
        # Implicit differentiation sees no learning rate: exactly zero, and wrong.
        value = np.log10(config["l2"] / 0.1) ** 2 + np.log10(config["rate"] / 1e-3) ** 2
        slope = 2 * np.log10(config["l2"] / 0.1) / (np.log(10) * config["l2"])
        return float(value), {"l2": slope, "rate": 0.0}

    assert search(Ledger(HypergradientSearcher(space)), blind, 40) < 0.02


def test_conditional_spaces_are_descended_on_their_active_leaves():
    space = SearchSpace(
        {
            "model": Choice(
                {
                    "a": {"x": Float(0, 1, shape=(3,))},
                    "b": {"y": Float(0, 1), "z": Choice({"p": {"w": Float(0, 1)}, "q": {}})},
                }
            )
        }
    )

    def tree(config):
        model = config["model"]
        if model["kind"] == "a":
            x = np.array(model["a"]["x"]) - 0.3
            return float(x @ x) + 0.5, {"model": {"a": {"x": 2 * x}}}
        y = model["b"]["y"] - 0.9
        gradient = {"model/b/y": 2 * y}
        value = y**2 + 0.2
        if model["b"]["z"]["kind"] == "p":
            w = model["b"]["z"]["p"]["w"] - 0.1
            value += w**2 - 0.2
            gradient["model/b/z/p/w"] = 2 * w
        return value, gradient

    assert search(Ledger(HypergradientSearcher(space)), tree, 25) < 1e-3


def test_a_gradient_that_is_known_to_be_wrong_is_not_used():
    def marked(number, observation):
        wrong = {"l2": -np.array(observation.gradient["l2"])}
        return Observation(
            observation.config, observation.value, wrong, gradient_error=math.inf, number=number
        )

    ledger = Ledger(HypergradientSearcher(SPACE))
    search(ledger, bowl, 10, change=marked)
    assert all(item.note.get("move") != "step" for item in ledger.history)


def test_thousands_of_hyperparameters_descend():
    space = SearchSpace(
        {"x": Float(1e-4, 1, log=True, shape=(5000,)), "c": Categorical(["a", "b"])}
    )
    target = np.linspace(0.2, 0.8, 5000)

    def quadratic(config):
        x = np.array(config["x"])
        away = np.log10(x) / 4 + target
        return float(away @ away) / 5000, {"x": away / (2 * 5000 * np.log(10) * x)}

    ledger = Ledger(HypergradientSearcher(space))
    search(ledger, quadratic, 25)
    assert ledger.best.value < 0.01 * ledger.history[0].value


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"radius": 2.0}, {"memory": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HypergradientSearcher(SPACE, **options)
