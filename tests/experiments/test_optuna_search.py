"""Optuna's samplers on our spaces: starts, ordinals, conditions, failures."""

import math

import pytest

from experiments.harness.optuna_search import available, optuna_search
from strategies.space import Categorical, Choice, Float, Ordinal, SearchSpace

SPACE = SearchSpace(
    {
        "rate": Float(1e-4, 1.0, log=True),
        "batch": Ordinal([8, 16, 64, 512]),
        "kind": Categorical(["relu", "tanh"]),
    }
)
START = {"rate": 0.01, "batch": 64, "kind": "tanh"}


def loss(config):
    SPACE.validate(config)
    return (math.log10(config["rate"]) + 3) ** 2 + abs(config["batch"] - 16)


@pytest.mark.parametrize("sampler", ["random", "TPE", "CMA-ES"])
def test_it_begins_where_it_is_told_and_stays_in_the_space(sampler):
    if not available(sampler):
        pytest.skip(f"{sampler} needs a package that is not installed")
    values = optuna_search(sampler, SPACE, loss, 12, seed=0, first=[START])
    assert values[0] == pytest.approx(loss(START))
    assert len(values) == 12
    assert values == optuna_search(sampler, SPACE, loss, 12, seed=0, first=[START])


def test_several_objectives_and_failures():
    def pair(config):
        value = loss(config)
        return (value, config["rate"]) if config["kind"] == "relu" else (math.nan, 0.0)

    values = optuna_search("NSGA-II", SPACE, pair, 30, seed=0, objectives=2)
    assert len(values) == 30
    assert any(math.isnan(value) for value, _ in values)


def test_conditional_spaces():
    space = SearchSpace({"net": Choice({"a": {"x": Float(0, 1)}, "b": {"y": Ordinal([1, 5])}})})
    seen = []

    def value(config):
        seen.append(space.validate(config))
        return 0.0 if config["net"]["kind"] == "a" else 1.0

    optuna_search("TPE", space, value, 15, seed=0)
    assert {config["net"]["kind"] for config in seen} == {"a", "b"}


def test_what_needs_nothing_more_is_available():
    assert all(available(sampler) for sampler in ("random", "TPE", "NSGA-II"))
