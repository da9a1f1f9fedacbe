"""Trials of `minimize` in one program: the same results as one by one, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from strategies import Categorical, Float, Int, RandomSearcher, SearchSpace, report
from strategies.local import minimize

X = jax.random.normal(jax.random.key(0), (20, 3))
Y = jnp.sin(X @ jnp.arange(3.0))
SPACE = SearchSpace(
    {
        "l2": Float(1e-4, 1e2, log=True, shape=(3,)),
        "loss": Categorical(["absolute", "squared"]),
        "power": Int(1, 3),
    }
)
TRACED = []


def ridge(config):
    """Also runs one by one, where it gets plain values."""
    TRACED.append(config["loss"])

    def outer(l2):
        w = jnp.linalg.solve(X.T @ X + jnp.diag(l2), X.T @ Y)
        error = jnp.abs(X @ w - Y)
        return jnp.mean(error if config["loss"] == "absolute" else error**2) ** config["power"]

    value, slope = jax.value_and_grad(outer)(jnp.asarray(config["l2"]))
    return report(value, {"l2": slope}, gradient_error=jnp.nan, info={"most": jnp.max(slope)})


def test_results_are_those_of_trials_one_by_one_and_nothing_is_compiled_twice():
    TRACED.clear()
    together = minimize(
        ridge, SPACE, trials=11, searcher=RandomSearcher(SPACE, seed=1), population=4
    )
    assert sorted(set(TRACED)) == ["absolute", "squared"]
    # Once to check shapes, once to compile.
    assert len(TRACED) == 4
    apart = minimize(ridge, SPACE, trials=11, searcher=RandomSearcher(SPACE, seed=1))
    for one, other in zip(together.history, apart.history, strict=True):
        assert one.config == other.config
        assert one.value == pytest.approx(other.value, rel=1e-10)
        np.testing.assert_allclose(one.gradient["l2"], other.gradient["l2"], rtol=1e-8)
        assert one.gradient_error is None
    most = [trial.info["most"] for trial in apart.trials]
    assert [trial.info["most"] for trial in together.trials] == pytest.approx(most)


def test_one_that_fails_harms_no_other_and_a_search_continues(tmp_path):
    space = SearchSpace({"x": Float(-1.0, 1.0)})

    def root(config):
        return jnp.sqrt(config["x"])

    path = tmp_path / "state.json"
    searcher = RandomSearcher(space, seed=0)
    minimize(root, space, trials=6, searcher=searcher, population=4, state_path=path)
    found = minimize(root, space, trials=12, searcher=searcher, population=4, state_path=path)
    assert len(found.history) == 12
    assert len(found.trials) == 6
    for item in found.history:
        x = item.config["x"]
        assert item.status == ("complete" if x >= 0 else "failed")
        assert x < 0 or item.value == pytest.approx(np.sqrt(x))
    whole = minimize(root, space, trials=12, searcher=searcher)
    assert [o.config for o in found.history] == [o.config for o in whole.history]


def test_gradients_reach_the_default_searcher():
    space = {"x": Float(0.0, 1.0, shape=(4,))}

    def bowl(config):
        value, slope = jax.value_and_grad(lambda x: jnp.sum((x - 0.3) ** 2))(config["x"])
        return report(value, {"x": slope})

    assert minimize(bowl, space, trials=24, population=4).best_value < 1e-3


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda config: jnp.zeros(config["n"]).sum(), "'n'.*changes no shape.*mask"),
        (lambda config: jnp.zeros(3), r"'value': expected a number, received float64\(3,\)"),
        (lambda config: None, "'objective': expected a number, received None"),
    ],
)
def test_what_cannot_be_one_program_is_said(objective, words):
    with pytest.raises(ValueError, match=words):
        minimize(objective, {"n": Int(1, 4)}, trials=4, population=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"population": 1}, "'population': expected an integer >= 2, received 1"),
        ({"population": 2, "workers": 2}, "expected none beside 'population'"),
        ({"population": 2, "timeout": 1.0}, "expected none beside 'population'"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(ValueError, match=words):
        minimize(lambda config: config["n"], {"n": Int(1, 4)}, trials=4, **options)
