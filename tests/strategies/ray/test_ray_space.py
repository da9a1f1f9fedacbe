"""Ray's domains and ours: every row of what a `param_space` may hold."""

import copy
import enum
import math
from decimal import Decimal

import numpy as np
import pytest
from ray import tune
from ray._private.dict import merge_dicts
from ray.tune.impl.placeholder import create_resolvers_map, inject_placeholders
from ray.tune.search.variant_generator import parse_spec_vars

from strategies.ray import HypergradSearch, space_from_ray, space_to_ray
from strategies.searchers import RandomSearcher
from strategies.space import Categorical, Choice, Constant, Float, Int, Ordinal, SearchSpace


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (tune.uniform(-1, 2), Float(-1, 2)),
        (tune.loguniform(1e-4, 1e-1), Float(1e-4, 1e-1, log=True)),
        (tune.quniform(0, 1, 0.25), Float(0, 1, step=0.25)),
        (tune.qloguniform(0.5, 8, 0.5), Float(0.5, 8, log=True, step=0.5)),
        (tune.randint(2, 5), Int(2, 4)),
        (tune.lograndint(1, 65), Int(1, 64, log=True)),
        (tune.qrandint(0, 10, 5), Int(0, 10, step=5)),
        (tune.qrandint(1, 11, 4), Int(4, 8, step=4)),
        (tune.qrandint(0, 10, 1), Int(0, 9)),
        (tune.qlograndint(4, 64, 4), Int(4, 64, log=True, step=4)),
        (tune.choice(["a", "b"]), Categorical(["a", "b"])),
        (tune.choice(["a", "b", "a", "a"]), Categorical(["a", "b"], weights=[3, 1])),
        (tune.choice([True, 1, 1.0]), Categorical([True, 1, 1.0])),
    ],
)
def test_domains_from_ray(domain, expected):
    assert space_from_ray({"x": domain}).domains == {"x": expected}


@pytest.mark.parametrize(
    "domain",
    [
        Float(-1, 2),
        Float(1e-4, 1e-1, log=True),
        Float(0, 1, step=0.25),
        Float(0.5, 8, log=True, step=0.5),
        Float(1e-6, 1, log=True, shape=(5,)),
        Float(0, 1, shape=(2, 3)),
        Int(2, 4),
        Int(1, 64, log=True),
        Int(5, 20, step=5),
        Int(4, 64, log=True, step=4),
        Categorical(["a", None, 3]),
    ],
)
def test_round_trip_through_ray(domain):
    space = SearchSpace({"group": {"x": domain}, "fixed": 7})
    assert space_from_ray(space_to_ray(space)) == space


def test_ray_samples_what_we_allow():
    """Every value that Ray draws is in our domain, so both agree on inclusive and exclusive."""
    param_space = {
        "a": tune.randint(0, 3),
        "b": tune.qrandint(1, 11, 4),
        "c": tune.lograndint(1, 4),
        "d": tune.quniform(-0.3, 0.3, 0.1),
        "e": tune.qrandint(0, 2, 1),
    }
    space = space_from_ray(param_space)
    seen = {name: set() for name in param_space}
    for _ in range(200):
        draw = {name: domain.sample() for name, domain in param_space.items()}
        space.validate(draw)
        for name, value in draw.items():
            seen[name].add(value)
    assert seen["a"] == {0, 1, 2}
    assert seen["b"] == {4, 8} == set(space.domains["b"].values)
    assert seen["c"] == {1, 2, 3} == set(space.domains["c"].values)
    assert len(seen["d"]) == 7
    assert seen["e"] == {0, 1} == set(space.domains["e"].values)


def test_ordinal_becomes_choice():
    param_space = space_to_ray(SearchSpace({"size": Ordinal([16, 32, 64])}))
    assert param_space["size"].categories == [16, 32, 64]


@pytest.mark.parametrize(
    ("space", "named"),
    [
        ({"m": Choice({"svm": {"C": Float(0, 1)}, "none": {}})}, "m/svm/C.*conditions"),
        ({"a": Categorical([1, 2], weights=[1, 3])}, "'a'.*weights"),
        ({"a": Int(1, 7, step=2)}, "'a'.*multiples of the step"),
        ({"a": Float(0.1, 1.1, step=0.5)}, "'a'.*multiples of the step"),
    ],
)
def test_what_ray_cannot_express_is_named(space, named):
    with pytest.raises(ValueError, match=named):
        space_to_ray(SearchSpace(space))


@pytest.mark.parametrize(
    ("param_space", "named"),
    [
        ({"n": {"lr": tune.grid_search([1, 2])}}, "'n/lr'.*grid_search"),
        ({"x": tune.randn(0, 1)}, "'x'.*randn"),
        ({"x": tune.qrandn(0, 1, 0.5)}, "'x'.*randn"),
        ({"a/b": tune.uniform(0, 1)}, "'a/b'.*without '/'"),
        ({"n": {3: tune.uniform(0, 1)}}, "'n/3'.*string"),
        ({"x": tune.uniform(2, 1)}, "'x'"),
        ({"x": tune.qrandint(5, 6, 4)}, "'x'.*no value"),
        ({"x": tune.choice([])}, "'x'.*at least one"),
        ({"x": 3}, "at least one hyperparameter"),
        ({}, "at least one hyperparameter"),
    ],
)
def test_what_cannot_be_searched_is_named(param_space, named):
    with pytest.raises(ValueError, match=named):
        space_from_ray(param_space)


def as_ray_sees(param_space):
    """What Ray hands to a searcher: a copy with placeholders for whatever is not primitive."""
    return inject_placeholders(copy.deepcopy(param_space), create_resolvers_map())


def suggestions(param_space, n=30):
    """Configs as a trainable would get them, but for unresolved placeholders."""
    search = HypergradSearch(RandomSearcher, metric="loss", mode="min", seed=1)
    seen = as_ray_sees(param_space)
    assert search.set_search_properties("loss", "min", copy.deepcopy(seen))
    return seen, [merge_dicts(seen, search.suggest(f"t{i}")) for i in range(n)]


def test_suggestions_leave_no_domain_behind_and_no_placeholder_changed():
    param_space = {
        "lr": tune.loguniform(1e-4, 1e-1),
        "model": {"width": tune.lograndint(8, 257), "act": tune.choice([np.tanh, "relu"])},
        "layers": [tune.randint(1, 4), 3, tune.uniform(0, 1), object()],
        "pair": (tune.uniform(0, 1), "x", {"deep": tune.uniform(2, 3)}),
        "l2": [tune.loguniform(1e-3, 1) for _ in range(4)],
        "matrix": [[tune.uniform(0, 1) for _ in range(2)] for _ in range(3)],
        "later": tune.sample_from(lambda config: 1),
        "constant": {"a": 1, 2: "integer key", "b/c": [1, 2]},
        "data": np.arange(3),
        "number": tune.choice([np.int64(3), np.float32(0.5)]),
    }
    seen, configs = suggestions(param_space)
    for config in configs:
        _, unresolved, grids = parse_spec_vars(config)
        assert unresolved == []
        assert grids == []
        assert type(config["lr"]) is float
        assert type(config["model"]["width"]) is int
        assert config["model"]["act"] in (seen["model"]["act"].categories)
        assert config["layers"][1] == 3
        assert config["layers"][3] == seen["layers"][3]
        assert isinstance(config["layers"], list)
        assert isinstance(config["pair"], tuple)
        assert config["pair"][1] == "x"
        assert 2 <= config["pair"][2]["deep"] <= 3
        assert np.shape(config["l2"]) == (4,)
        assert all(type(x) is float for x in config["l2"])
        assert np.shape(config["matrix"]) == (3, 2)
        assert config["later"] == seen["later"]
        assert config["constant"] == {"a": 1, 2: "integer key", "b/c": [1, 2]}
        assert config["data"] == seen["data"]
        assert config["number"] in seen["number"].categories
    assert {c["model"]["act"] for c in configs} == set(seen["model"]["act"].categories)


def test_choices_that_hold_domains_are_searched():
    """Nobody else expands these: they become conditional, and gradients find their way."""
    param_space = {
        "opt": tune.choice(
            [
                {"name": "sgd", "momentum": tune.uniform(0, 0.9)},
                {"name": "adam", "b1": tune.uniform(0.8, 0.99), "hook": print},
                "none",
            ]
        ),
        "drop": tune.choice([0.0, tune.uniform(0.1, 0.5)]),
    }
    _, configs = suggestions(param_space, 40)
    kinds = set()
    for config in configs:
        _, unresolved, _ = parse_spec_vars(config)
        assert unresolved == []
        opt = config["opt"]
        kinds.add(opt if opt == "none" else opt["name"])
        if opt != "none" and opt["name"] == "sgd":
            assert set(opt) == {"name", "momentum"}
        if opt != "none" and opt["name"] == "adam":
            assert 0.8 <= opt["b1"] <= 0.99
            assert opt["hook"][0] == "__ref_ph"
        assert config["drop"] == 0.0 or 0.1 <= config["drop"] <= 0.5
    assert kinds == {"sgd", "adam", "none"}


def test_array_of_floats_is_one_hyperparameter():
    space = space_from_ray(
        {"l2": [tune.loguniform(1e-3, 1)] * 64, "mixed": [tune.uniform(0, 1), 2]}
    )
    assert space.domains["l2"] == Float(1e-3, 1, log=True, shape=(64,))
    assert space.domains["mixed/0"] == Float(0, 1)


def test_constants_are_kept_where_they_are_plain():
    space = space_from_ray({"x": tune.uniform(0, 1), "n": {"depth": 3}, "f": print, "l": [1, 2]})
    assert space.domains["n/depth"] == Constant(3)
    assert space.domains["l"] == Constant([1, 2])
    assert "f" not in space.domains


def test_single_valued_domains_are_constants():
    space = space_from_ray(
        {"x": tune.randint(3, 4), "y": tune.uniform(0, 1), "z": tune.uniform(2, 2)}
    )
    assert space.domains["x"] == Constant(3)
    assert space.domains["z"] == Constant(2.0)
    _, configs = suggestions({"x": tune.randint(3, 4), "y": tune.uniform(0, 1)}, 2)
    assert configs[0]["x"] == 3


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


ODD = {
    "x": tune.uniform(Decimal(0), np.float32(1)),
    "size": tune.choice(list(Size)),
    "norm": tune.choice([1, 2, math.inf]),
    "none": tune.choice([math.nan, 0.5]),
    "fixed": {"size": Size.LARGE, "cap": math.inf, "number": 3},
    "layers": tune.choice([[1, 2], {"number": 3}]),
}


def test_a_space_of_odd_numbers_and_choices_is_found_again_by_its_state(tmp_path):
    search = HypergradSearch(RandomSearcher, metric="loss", mode="min")
    search.set_search_properties("loss", "min", ODD)
    configs = [search.suggest(name) for name in "abcdef"]
    for name in "abc":
        search.on_trial_complete(name, {"loss": 1.0})
    search.save(tmp_path / "state")
    again = HypergradSearch(RandomSearcher)
    again.restore(tmp_path / "state")
    assert again.searcher_.space.identity() == search.searcher_.space.identity()
    assert repr(again.ledger.history) == repr(search.ledger.history)
    assert repr(again.suggest("g")) == repr(search.suggest("g"))
    assert {type(config["size"]) for config in configs} == {Size}
    assert math.inf in {config["norm"] for config in configs}


def test_an_enumeration_that_a_state_could_not_name_is_refused_before_the_first_trial():
    class Local(enum.IntEnum):
        A = 1
        B = 2

    with pytest.raises(ValueError, match="expected enumerations at the top of a module"):
        HypergradSearch(RandomSearcher).set_search_properties(
            "loss", "min", {"c": tune.choice(list(Local))}
        )
