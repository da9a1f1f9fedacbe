"""The spread over keys enters the error estimate."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    BilevelProblem,
    ImplicitDifferentiation,
    Metasmooth,
    Newton,
    OverKeys,
    Unrolled,
    hypergradient,
)
from hypergrad.compiled import InaccurateHypergradientError, InaccurateHypergradientWarning
from hypergrad.outcome import Outcome
from hypergrad.outer import HOAG, MAID, Alternating, run
from hypergrad.unrolled import StepFunction

X = jax.random.normal(jax.random.key(1), (30, 4))
Y = X @ jnp.arange(4.0)


def dropped(w, h, batch, key):
    keep = jax.random.bernoulli(key, 0.5, X.shape)
    return jnp.mean((jnp.where(keep, 2 * X, 0) @ w - Y) ** 2)


def clean(w, h, batch, key):
    return jnp.mean((X @ w - Y) ** 2)


PROBLEM = BilevelProblem(dropped, clean, stochastic=True)
ONE = Unrolled(lambda rate: optax.sgd(rate), 6)


@jax.jit
def single(key):
    return hypergradient(PROBLEM, jnp.zeros(4), jnp.asarray(0.1), estimator=ONE, key=key)


def test_the_spread_of_the_keys_covers_the_expectation():
    truth = jnp.mean(
        jax.lax.map(lambda k: single(k).grad, jax.random.split(jax.random.key(7), 1000))
    )
    call = jax.jit(
        lambda key: hypergradient(
            PROBLEM, jnp.zeros(4), jnp.asarray(0.1), estimator=OverKeys(ONE, 4), key=key
        )
    )
    out = jax.lax.map(call, jax.random.split(jax.random.key(3), 100))
    true_error = np.abs(out.grad - truth) / np.abs(out.grad)
    ratio = true_error / np.asarray(out.info.error)
    assert np.mean(ratio < 1) > 0.9
    assert np.mean(ratio < 3) > 0.97
    assert np.median(1 / ratio) < 10


def test_it_is_the_mean_over_its_keys():
    key = jax.random.key(0)
    out = hypergradient(PROBLEM, jnp.zeros(4), 0.1, estimator=OverKeys(ONE, 3), key=key)
    each = [single(k) for k in jax.random.split(key, 3)]
    np.testing.assert_allclose(out.grad, np.mean([one.grad for one in each]), rtol=1e-9)
    np.testing.assert_allclose(out.value, np.mean([one.value for one in each]), rtol=1e-9)
    np.testing.assert_allclose(out.state.params, each[0].state.params, rtol=1e-9)


def test_one_key_does_not_know_the_error_of_the_expectation():
    assert jnp.isnan(single(jax.random.key(0)).info.error)


def test_bad_numbers_of_keys():
    with pytest.raises(ValueError, match="at least 2, received 1"):
        OverKeys(ONE, 1)
    with pytest.raises(ValueError, match="pass `key`"):
        hypergradient(PROBLEM, jnp.zeros(4), 0.1, estimator=OverKeys(ONE, 2))


def test_what_the_error_estimates_of_all_keys_cost():
    def noisy(w, h, batch, key):
        return 0.5 * jnp.sum((1 + h**2) * w**2) - w @ (1 + 0.01 * jax.random.normal(key, (4,)))

    problem = BilevelProblem(noisy, lambda w, h, b, key: jnp.sum((w - 1) ** 2), stochastic=True)
    solved = ImplicitDifferentiation(Newton())
    one, three = (
        hypergradient(problem, jnp.zeros(4), 0.1, estimator=estimator, key=jax.random.key(0))
        for estimator in (solved, OverKeys(solved, 3))
    )
    assert int(three.info.error_calls) == 3 * int(one.info.error_calls) > 0


def test_keys_inside_of_another_estimator_count():
    around = Metasmooth(OverKeys(ONE, 2), step=1e-3)
    out = hypergradient(PROBLEM, jnp.zeros(4), 0.1, estimator=around, key=jax.random.key(0))
    assert float(out.info.error) > 0
    around = Metasmooth(ONE, step=1e-3)
    out = hypergradient(PROBLEM, jnp.zeros(4), 0.1, estimator=around, key=jax.random.key(0))
    assert np.isnan(out.info.error)


def test_a_run_does_not_either():
    def history(estimator):
        algorithm = Alternating(estimator, optax.sgd(1e-3))
        return run(PROBLEM, algorithm, jnp.zeros(4), 0.1, None, None, steps=1).history

    assert np.isnan(history(ONE)[0]["error"])
    assert history(OverKeys(ONE, 2))[0]["error"] > 0


NOISY = BilevelProblem(
    lambda w, h, b, key: (
        0.5 * jnp.sum((1 + h**2) * w**2) - w @ (1 + 0.01 * jax.random.normal(key, (4,)))
    ),
    lambda w, h, b, key: jnp.sum((w - 1) ** 2),
    stochastic=True,
)


def squares(w, h, batch):
    return jnp.sum(w**2)


WALK = StepFunction(
    lambda w, s, h, b, key: (w - h * (w - 1) + 0.1 * jax.random.normal(key, (4,)), s),
    stochastic=True,
)


@pytest.mark.parametrize(
    ("problem", "estimator"),
    [
        (NOISY, ImplicitDifferentiation(Newton())),
        (NOISY, ImplicitDifferentiation(Newton(), error_estimate=False)),
        (NOISY, Unrolled(optax.sgd(0.3), 60)),
        (BilevelProblem(squares, squares), Unrolled(WALK, 3)),
    ],
)
def test_one_key_is_accepted_in_silence_and_refused_by_strict(problem, estimator):
    """In all families alike: the noise of the losses, or that of a step."""
    ask = partial(
        hypergradient, problem, jnp.zeros(4), 0.5, estimator=estimator,
        key=jax.random.key(0),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = ask()
    assert jnp.isnan(out.info.error)
    assert "one draw" in str(out.info)
    assert "OverKeys" in Outcome[out.info.outcome]
    with pytest.raises(InaccurateHypergradientError, match="OverKeys"):
        ask(strict=True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="OverKeys"):
        jax.jit(lambda h: hypergradient(problem, jnp.zeros(4), h, estimator=estimator,
                                        key=jax.random.key(0), strict=True))(0.5)  # fmt: skip
    several = ask(estimator=OverKeys(estimator, 8), strict=True)
    # Without an estimate the small residuals of all keys are what strict goes by.
    silent = isinstance(estimator, ImplicitDifferentiation) and estimator.error_estimate is None
    assert jnp.isnan(several.info.error) if silent else 0 < several.info.error < 1


def test_an_unsolved_problem_is_told_of_first():
    silent = ImplicitDifferentiation(error_estimate=False)
    with pytest.warns(InaccurateHypergradientWarning, match="not solved well enough"):
        hypergradient(NOISY, 5 + jnp.arange(4.0), 0.5, estimator=silent, key=jax.random.key(0))


@pytest.mark.filterwarnings("ignore::hypergrad.InaccurateHypergradientWarning")
def test_a_spread_alone_is_told_where_it_is_large():
    def with_noise(size):
        problem = BilevelProblem(
            lambda w, h, b, key: NOISY.inner(w, h, b, key) - size * jnp.sum(w) * noise(key),
            NOISY.outer,
            stochastic=True,
        )
        silent = OverKeys(ImplicitDifferentiation(Newton(), error_estimate=False), 4)
        told = OverKeys(ImplicitDifferentiation(Newton()), 4)
        return [
            hypergradient(problem, jnp.zeros(4), 0.5, estimator=e, key=jax.random.key(0)).info.error
            for e in (silent, told)
        ]

    def noise(key):
        return jax.random.normal(key)

    silent, told = with_noise(0.3)
    assert silent == pytest.approx(float(told), rel=1e-6)
    assert silent > 0.1
    # A small spread does not show that the solves are exact.
    silent, told = with_noise(0.0)
    assert told < 0.1
    assert jnp.isnan(silent)


@pytest.mark.parametrize("algorithm", [HOAG, MAID])
def test_losses_under_new_noise_are_not_compared(algorithm):
    with pytest.raises(ValueError, match=r"new key in every step.*SABA"):
        run(
            PROBLEM, algorithm(ImplicitDifferentiation(Newton())), jnp.zeros(4), 0.1, None, None,
            steps=1,
        )  # fmt: skip
