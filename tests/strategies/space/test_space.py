"""The search space: exact round trips, gradients against autodiff, and clear errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.space import (
    Categorical,
    Choice,
    Constant,
    Float,
    Int,
    Ordered,
    Ordinal,
    SearchSpace,
    Simplex,
)

SPACE = SearchSpace(
    {
        "l2": Float(1e-6, 1e2, log=True, shape=(3, 2)),
        "model": {"width": Int(8, 256, log=True), "rate": Float(-1.5, 2 / 3)},
        "scale": Categorical(["none", "standard", None, 1, 1.0, True, (1, 2)]),
        "batch": Ordinal([16, 32, 64]),
        "grid": Float(0.1, 0.9, step=0.2),
        "kind": "fixed",
        "net": Choice(
            {
                "linear": {},
                "mlp": {
                    "depth": Int(1, 3),
                    "drop": Float(0.0, 0.9),
                    "act": Choice({"relu": {}, "elu": {"alpha": Float(0.1, 10, log=True)}}),
                },
            }
        ),
    }
)

quick = settings(max_examples=100, deadline=None)
bounds = st.floats(-1e6, 1e6).flatmap(
    lambda low: st.floats(1e-3, 1e6).map(lambda width: (low, low + width))
)
log_bounds = st.floats(1e-100, 1e90).flatmap(
    lambda low: st.floats(1.001, 1e9).map(lambda ratio: (low, low * ratio))
)
units = st.floats(0, 1)


@quick
@given(bounds, units)
def test_linear_float_round_trip(limits, unit):
    domain = Float(*limits)
    value = domain.decode(np.array([unit]))
    assert domain.decode(domain.encode(value)) == value
    assert domain.check(value, "x") == value
    assert abs(domain.encode(value)[0] - unit) <= 1e-11 * max(1, *map(abs, limits)) / (
        domain.high - domain.low
    )


@quick
@given(log_bounds, units)
def test_log_float_round_trip(limits, unit):
    domain = Float(*limits, log=True)
    value = domain.decode(np.array([unit]))
    assert domain.decode(domain.encode(value)) == value
    assert domain.check(value, "x") == value


@quick
@given(bounds, st.integers(1, 1000), units, st.booleans())
def test_stepped_float_round_trip(limits, steps, unit, log):
    low, high = limits
    if log:
        low, high = abs(low) + 1e-3, abs(low) + 1e-3 + high - low
    domain = Float(low, high, step=(high - low) / steps, log=log)
    for value in (domain.decode(np.array([unit])), domain.draw(np.array([unit]))):
        assert domain.decode(domain.encode(value)) == value
        assert domain.check(value, "x") == value


@quick
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 50), units, st.booleans())
def test_int_round_trip(low, width, step, unit, log):
    domain = Int(low, low + width, step=min(step, width), log=log)
    value = domain.decode(np.array([unit]))
    assert type(value) is int
    assert value in domain.values
    assert domain.decode(domain.encode(value)) == value
    assert domain.check(value, "x") == value


@quick
@given(st.integers(0, 2**32))
def test_space_round_trips(seed):
    rng = np.random.default_rng(seed)
    for config in (
        SPACE.sample(rng),
        SPACE.decode(rng.uniform(-0.2, 1.2, SPACE.dimension)),
        SPACE.from_uniform(rng.random(SPACE.uniforms)),
    ):
        assert SPACE.validate(config) == config
        vector = SPACE.encode(config)
        assert vector.shape == (SPACE.dimension,)
        assert np.all((vector >= 0) & (vector <= 1))
        assert SPACE.decode(vector) == config
        assert SPACE.unflatten(SPACE.flatten(config)) == config
        stored = json.loads(json.dumps(SPACE.to_json(config), allow_nan=False))
        again = SPACE.from_json(stored)
        assert repr(again) == repr(config)
        back = SPACE.from_unconstrained(SPACE.to_unconstrained(config), config)
        np.testing.assert_allclose(SPACE.encode(back), vector, atol=2e-12)


def test_values_are_plain_python():
    config = SPACE.sample(np.random.default_rng(1))
    assert type(config["model"]["width"]) is int
    assert type(config["model"]["rate"]) is float
    assert isinstance(config["l2"], list)
    assert isinstance(config["l2"][2], list)
    assert type(config["l2"][2][1]) is float


def test_arrays_of_any_library_are_accepted():
    config = SPACE.default()
    given_config = {
        **config,
        "l2": jnp.asarray(config["l2"], jnp.float32),
        "model": {"width": np.int64(9), "rate": np.float32(0.25)},
    }
    valid = SPACE.validate(given_config)
    assert valid["model"] == {"width": 9, "rate": 0.25}
    assert type(valid["model"]["width"]) is int
    np.testing.assert_allclose(valid["l2"], config["l2"], rtol=1e-6)


def test_float32_rounding_at_a_bound_is_tolerated_and_clipped():
    domain = Float(0.1, 0.3)
    assert domain.check(np.float32(0.3), "x") == 0.3
    with pytest.raises(ValueError, match=r"'x': expected a number in \[0.1, 0.3\], received 0.301"):
        domain.check(0.301, "x")


def test_flat_and_nested_configurations_are_the_same():
    config = SPACE.sample(np.random.default_rng(3))
    assert SPACE.validate(SPACE.flatten(config)) == config


@pytest.mark.parametrize("unconstrained", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_pull_back_is_the_chain_rule_of_autodiff(seed, unconstrained):
    rng = np.random.default_rng(seed)
    config = SPACE.sample(rng)
    config["net"] = {
        "kind": "mlp",
        "mlp": {"depth": 2, "drop": 0.3, "act": {"kind": "elu", "elu": {"alpha": 0.7}}},
    }
    where = SPACE.differentiable & SPACE.active_mask(config)

    def natural(unit):
        # The map from unit coordinates to values, written a second time in JAX.
        assert unit.shape == (9,)
        log = lambda u, low, high: jnp.exp(jnp.log(low) + u * jnp.log(high / low))  # noqa: E731
        return {
            "l2": log(unit[:6].reshape(3, 2), 1e-6, 1e2),
            "model": {"rate": -1.5 + unit[6] * (2 / 3 + 1.5)},
            "net/mlp/drop": unit[7] * 0.9,
            "net": {"mlp": {"act": {"elu": {"alpha": log(unit[8], 0.1, 10.0)}}}},
        }

    if unconstrained:
        point, to_unit = SPACE.to_unconstrained(config), jax.nn.sigmoid
    else:
        point, to_unit = SPACE.encode(config)[where], lambda unit: unit

    def objective(values):
        leaves = jax.tree.leaves(values)
        return sum(jnp.sum(jnp.sin(leaf) * leaf) for leaf in leaves)

    gradient = jax.grad(objective)(natural(to_unit(jnp.asarray(point))))
    truth = jax.grad(lambda p: objective(natural(to_unit(p))))(jnp.asarray(point))
    pulled = SPACE.pull_back(config, gradient, unconstrained=unconstrained)
    if not unconstrained:
        assert np.isnan(pulled[~where]).all()
        pulled = pulled[where]
    np.testing.assert_allclose(pulled, truth, rtol=1e-9)


def test_partial_gradient_is_nan_where_nothing_is_known():
    space = SearchSpace({"a": Float(0, 2), "b": Float(0, 1, shape=(2,)), "c": Int(1, 3)})
    config = {"a": 1.0, "b": [0.5, 0.5], "c": 2}
    pulled = space.pull_back(config, {"b": [1.0, np.nan], "a": None})
    np.testing.assert_array_equal(pulled, [np.nan, 1.0, np.nan, np.nan])


def test_conditions():
    space = SearchSpace(
        {
            "model": Categorical(["svm", "mlp", "tree"]),
            "depth": Int(1, 3, when={"model": ["mlp", "tree"]}),
            "width": Int(8, 64, when={"model": "mlp", "depth": [2, 3]}),
        }
    )
    assert space.validate({"model": "svm"}) == {"model": "svm"}
    assert space.validate({"model": "tree", "depth": 3}) == {"model": "tree", "depth": 3}
    mask = space.active_mask({"model": "tree", "depth": 3})
    np.testing.assert_array_equal(mask, [True, True, True, True, False])
    with pytest.raises(ValueError, match=r"'width'.*missing"):
        space.validate({"model": "mlp", "depth": 2})
    with pytest.raises(ValueError, match="'depth': expected no value"):
        space.validate({"model": "svm", "depth": 2})


def test_inactive_hyperparameters_draw_no_random_numbers():
    tail = {"x": Float(0, 1), "y": Float(0, 1, shape=(3,))}
    one = SearchSpace({"m": Categorical(["a", "b"], weights=[1, 0]), **tail})
    two = SearchSpace(
        {
            "m": Categorical(["a", "b"], weights=[1, 0]),
            "only_b": Float(0, 1, shape=(5,), when={"m": "b"}),
            **tail,
        }
    )
    assert one.sample(np.random.default_rng(0)) == two.sample(np.random.default_rng(0))


def test_prior_weights_and_uniform_integers():
    rng = np.random.default_rng(0)
    space = SearchSpace({"c": Categorical(["a", "b"], weights=[3, 1]), "i": Int(1, 4)})
    drawn = [space.sample(rng) for _ in range(4000)]
    assert abs(np.mean([config["c"] == "a" for config in drawn]) - 0.75) < 0.03
    counts = np.bincount([config["i"] for config in drawn], minlength=5)[1:]
    assert np.all(np.abs(counts / 4000 - 0.25) < 0.03)


def test_defaults_and_completion():
    space = SearchSpace(
        {
            "a": Float(0, 1, default=0.25),
            "b": Float(1, 100, log=True),
            "c": Categorical(["x", "y"], default="y"),
        }
    )
    assert space.default() == {"a": 0.25, "b": 10.0, "c": "y"}
    assert space.complete({"b": 3}) == {"a": 0.25, "b": 3.0, "c": "y"}
    with pytest.raises(ValueError, match=r"'b'.*received 300"):
        space.complete({"b": 300})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Float(1, 1), "low: expected a number below high=1.0, received 1.0"),
        (lambda: Float(0, 1, log=True), "low: expected a positive number because log=True"),
        (lambda: Float(0, np.inf), "'high': expected a finite number, received inf"),
        (lambda: Float("a", 1), "'low': expected a finite number, received 'a'"),
        (lambda: Float(0, 1, shape=(0,)), "'shape': expected a tuple of positive integers"),
        (lambda: Float(0, 1, step=2), "'step': expected a number in"),
        (lambda: Float(0, 1, default=3), r"'default': expected a number in \[0.0, 1.0\]"),
        (lambda: Int(1, 2.5), "'high': expected an integer, received 2.5"),
        (lambda: Int(0, 4, log=True), "low: expected a positive number because log=True"),
        (lambda: Int(5, 4), "low: expected a number below high=4, received 5"),
        (lambda: Int(1, 4, step=9), "'step': expected an integer in"),
        (lambda: Categorical([]), "'choices': expected at least one choice"),
        (lambda: Categorical("ab"), "'choices': expected a list of choices"),
        (lambda: Categorical(["a", "a"]), "'choices': expected choices that differ"),
        (lambda: Categorical(["a", Float(0, 1)]), "plain values"),
        (lambda: Categorical(["a", "b"], weights=[1]), "'weights': expected 2 weights"),
        (lambda: Ordinal([]), "'values': expected at least one choice"),
        (lambda: SearchSpace({}), "expected at least one hyperparameter to tune, .*received none"),
        (lambda: SearchSpace({"a": 1}), r"received only constants: \['a'\]"),
        (lambda: SearchSpace({"a": Categorical(["x"])}), "at least one hyperparameter to tune"),
        (lambda: SearchSpace([1]), "expected a mapping from names to domains"),
        (lambda: SearchSpace({"a/b": Float(0, 1)}), "without '/', received 'a/b'"),
        (lambda: SearchSpace({1: Float(0, 1)}), "non-empty string without '/', received 1"),
        (lambda: SearchSpace({"g": {"a/b": Float(0, 1)}}), "'g/a/b'"),
        (lambda: SearchSpace({"a": [Float(0, 1)]}), "lists cannot hold domains"),
        (lambda: SearchSpace({"a": Float(0, 1, when={"b": 1})}), "'a': expected a condition on"),
        (
            lambda: SearchSpace({"a": Float(0, 1), "b": Int(0, 1, when={"a": 1})}),
            "'b': expected a condition on a discrete hyperparameter, received 'a'",
        ),
        (
            lambda: SearchSpace({"a": Int(0, 1), "b": Int(0, 1, when={"a": 7})}),
            "'b when a': expected an integer in",
        ),
        (
            lambda: SearchSpace({"a": Int(0, 1, when={"b": 1}), "b": Int(0, 1, when={"a": 1})}),
            "conditions without a cycle",
        ),
        (lambda: Simplex(1), "'parts': expected an integer >= 2"),
        (lambda: Simplex(3, total=0), "'total': expected a positive number"),
        (lambda: Simplex(3, default=[1, 1, 1]), "'default': expected 3 numbers >= 0 with sum 1.0"),
        (lambda: Ordered(0, 1, 0), "'entries': expected an integer >= 1"),
        (lambda: Ordered(0, 1, 2, log=True), "low: expected a positive number"),
        (lambda: Ordered(0, 1, 2, default=[1, 0]), "'default': expected 2 increasing numbers"),
        (lambda: Constant(1, default=2), "a constant is its own default"),
    ],
)
def test_bad_spaces_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": 1.0}, r"'l2': expected an array of shape \(3, 2\).*received 'shape \(\)'"),
        ({"l2": [[1, 2], [3]]}, "'l2': expected an array of shape"),
        ({"l2": np.full((3, 2), 1e3)}, r"'l2'.*in \[1e-06, 100.0\], received 1000.0"),
        ({"l2": np.full((3, 2), np.nan)}, "'l2': expected an array"),
        ({"model": {"width": 7, "rate": 0}}, r"'model/width': expected an integer in \[8, 256\]"),
        ({"model": {"width": 8.5, "rate": 0}}, "'model/width'.*received 8.5"),
        ({"model": {"width": "8", "rate": 0}}, "'model/width'.*received '8'"),
        ({"model": {"width": True, "rate": 0}}, "'model/width'.*received True"),
        ({"model": {"width": 8}}, "'model/rate': expected Float.*received nothing"),
        ({"model": {"width": 8, "rate": 0, "x": 1}}, "'model/x': expected one of the keys"),
        ({"unknown": 1}, "'unknown': expected one of the keys"),
        ({"model": 3}, "'model': expected one of the keys"),
        ({"scale": "other"}, "'scale': expected one of"),
        ({"scale": 0}, "'scale': expected one of"),
        ({"batch": 17}, "'batch': expected one of"),
        ({"grid": 0.2}, "'grid': expected a multiple of 0.2 from 0.1"),
        ({"kind": "else"}, "'kind': expected the constant 'fixed'"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    config = {**SPACE.default(), **change}
    with pytest.raises(ValueError, match=message):
        SPACE.validate(config)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        ({"nope": 1.0}, "'nope': expected one of the keys"),
        (
            {"l2": np.ones(6)},
            r"'l2': expected a gradient of numbers of shape \(3, 2\), received 'shape \(6,\)'",
        ),
        ({"model": {"rate": [1.0]}}, r"'model/rate': expected a gradient of numbers of shape \(\)"),
        ({"model/width": 1.0}, "'model/width': expected no gradient, as it is Int"),
        ({"scale": 1.0}, "'scale': expected no gradient"),
        ({"net/mlp/drop": 1.0}, "'net/mlp/drop': expected no gradient, as the configuration"),
        ({"model": {"rate": "x"}}, "'model/rate': expected a gradient of numbers"),
    ],
)
def test_bad_gradients_are_refused(gradient, message):
    with pytest.raises(ValueError, match=message):
        SPACE.flatten_gradient(SPACE.default(), gradient)


def test_spaces_compare_and_print():
    again = SearchSpace(
        {
            "l2": Float(1e-6, 1e2, log=True, shape=(3, 2)),
            "model": {"width": Int(8, 256, log=True), "rate": Float(-1.5, 2 / 3)},
            "scale": Categorical(["none", "standard", None, 1, 1.0, True, (1, 2)]),
            "batch": Ordinal([16, 32, 64]),
            "grid": Float(0.1, 0.9, step=0.2),
            "kind": Constant("fixed"),
            "net": Choice(
                {
                    "linear": {},
                    "mlp": {
                        "depth": Int(1, 3),
                        "drop": Float(0.0, 0.9),
                        "act": Choice({"relu": {}, "elu": {"alpha": Float(0.1, 10, log=True)}}),
                    },
                }
            ),
        }
    )
    assert again == SPACE
    assert "  net/mlp/act/elu/alpha  Float(low=0.1, high=10.0, log=True) when" in repr(SPACE)
    assert str(SPACE).startswith("SearchSpace of 12 hyperparameters:")


STRUCTURED = SearchSpace(
    {
        "mix": Simplex(4),
        "budget": Simplex(3, total=7.5, at_most=True),
        "knots": Ordered(-1, 2, 3),
        "rates": Ordered(1e-5, 1, 4, log=True, decreasing=True),
    }
)


@quick
@given(st.integers(0, 2**32))
def test_structured_values_hold_their_constraint_and_round_trip(seed):
    rng = np.random.default_rng(seed)
    edge = np.where(rng.random(STRUCTURED.dimension) < 0.2, rng.integers(0, 2), rng.random())
    for config in (
        STRUCTURED.sample(rng),
        STRUCTURED.decode(rng.random(STRUCTURED.dimension)),
        STRUCTURED.decode(edge),
    ):
        assert abs(sum(config["mix"]) - 1) < 1e-9
        assert min(config["mix"]) >= 0
        assert sum(config["budget"]) < 7.5 + 1e-8
        assert config["knots"] == sorted(config["knots"])
        assert config["rates"] == sorted(config["rates"], reverse=True)
        assert STRUCTURED.validate(config) == config
        assert STRUCTURED.decode(STRUCTURED.encode(config)) == config


def test_structured_defaults_are_even_and_draws_uniform():
    config = STRUCTURED.default()
    assert config["mix"] == [0.25] * 4
    assert config["budget"] == [1.875] * 3
    assert config["knots"] == [-0.25, 0.5, 1.25]
    np.testing.assert_allclose(config["rates"], [1e-1, 1e-2, 1e-3, 1e-4])
    rng = np.random.default_rng(0)
    drawn = np.array([STRUCTURED.sample(rng)["mix"] for _ in range(3000)])
    np.testing.assert_allclose(drawn.mean(0), 0.25, atol=0.02)
    # Each share is Beta(1, 3).
    np.testing.assert_allclose(drawn.var(0), 0.25 * 0.75 / 5, rtol=0.15)
    knots = np.array([STRUCTURED.sample(rng)["knots"] for _ in range(3000)])
    np.testing.assert_allclose(knots.mean(0), [-0.25, 0.5, 1.25], atol=0.05)


@pytest.mark.parametrize("path", ["mix", "budget", "knots", "rates"])
def test_structured_pull_back_is_the_chain_rule_of_finite_differences(path):
    config = STRUCTURED.sample(np.random.default_rng(5))
    rng = np.random.default_rng(1)
    slope = rng.standard_normal(len(config[path])) / np.abs(config[path])
    where = STRUCTURED.slices[path]
    unit = STRUCTURED.encode(config)
    pulled = STRUCTURED.pull_back(config, {path: slope})[where]
    truth = []
    for i in range(where.start, where.stop):
        step = np.zeros_like(unit)
        step[i] = 1e-4
        ahead = np.array(STRUCTURED.decode(unit + step)[path])
        behind = np.array(STRUCTURED.decode(unit - step)[path])
        truth.append(slope @ (ahead - behind) / 2e-4)
    np.testing.assert_allclose(pulled, truth, rtol=1e-4, atol=1e-5)


def test_constraints_by_predicate():
    space = SearchSpace(
        {"a": Float(0, 1), "b": Float(0, 1), "n": Int(1, 8)},
        constraints={"order": lambda c: c["a"] < c["b"], "even": lambda c: c["n"] % 2 == 0},
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        config = space.sample(rng)
        assert config["a"] < config["b"]
        assert config["n"] % 2 == 0
    assert space.feasible(space.default())
    assert space.complete({"n": 4})["n"] == 4
    with pytest.raises(ValueError, match="'constraint order': expected a configuration that meets"):
        space.validate({"a": 0.5, "b": 0.25, "n": 2})
    with pytest.raises(ValueError, match="'constraints': expected configurations that meet"):
        space.complete({"n": 3})
    with pytest.raises(ValueError, match="'constraint odd': expected a function"):
        SearchSpace({"a": Float(0, 1)}, constraints={"odd": 1})


def test_priors_concentrate_around_the_default():
    space = SearchSpace(
        {
            "x": Float(1e-4, 1, log=True, default=1e-3, spread=0.1),
            "n": Int(1, 1000, default=100, spread=0.05),
            "o": Ordinal([1, 2, 3, 4, 5], default=4, spread=0.1),
            "edge": Float(0, 1, default=0.0, spread=0.2),
        }
    )
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(2000)]
    logs = np.log10([c["x"] for c in drawn])
    assert abs(np.median(logs) + 3) < 0.05
    assert abs(np.std(logs) - 0.4) < 0.05
    assert abs(np.median([c["n"] for c in drawn]) - 100) < 5
    assert np.mean([c["o"] == 4 for c in drawn]) > 0.5
    assert abs(np.mean([c["edge"] for c in drawn]) - 0.2 * np.sqrt(2 / np.pi)) < 0.01
    with pytest.raises(ValueError, match="'default': expected a value, because spread"):
        Float(0, 1, spread=0.1)


def test_json_form_of_a_space():
    space = SearchSpace(
        {
            "x": Float(1e-4, 1, log=True, default=1e-3, spread=0.1, shape=(2,)),
            "g": {"n": Int(1, 9, step=2), "c": Categorical(["a", None, 1.5], weights=[1, 2, 3])},
            "o": Ordinal([1, 2]),
            "k": Constant({"deep": [1, 2]}),
            "net": Choice({"none": {}, "mlp": {"p": Simplex(3, total=2.0)}}),
            "r": Ordered(0, 1, 2, when={"g/c": ["a", None]}),
        }
    )
    stored = json.loads(json.dumps(space.to_dict(), allow_nan=False))
    again = SearchSpace.from_dict(stored)
    assert again == space
    assert again.describe() == space.describe()
    assert stored["g/n"] == {"kind": "int", "low": 1, "high": 9, "step": 2}
    with pytest.raises(ValueError, match="'c choices': expected values that JSON can hold"):
        SearchSpace({"c": Categorical([(1, 2), (3, 4)])}).to_dict()
    with pytest.raises(ValueError, match="'constraints': expected none"):
        SearchSpace({"a": Float(0, 1)}, constraints={"odd": bool}).to_dict()
    with pytest.raises(ValueError, match="'a kind': expected one of"):
        SearchSpace.from_dict({"a": {"kind": "else"}})
