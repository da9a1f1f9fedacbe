"""Metasmoothness: near one for a smooth training, small for a chaotic one."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    BilevelProblem,
    ImplicitDifferentiation,
    InaccurateHypergradientError,
    Metasmooth,
    hypergradient,
    metasmoothness,
)
from hypergrad.inner import Newton
from hypergrad.metasmooth.moves import noise_of, smoothness_of
from hypergrad.outer import Alternating, run
from hypergrad.unrolled import Unrolled
from strategies.local import minimize
from strategies.observation import report
from strategies.searchers import HypergradientSearcher
from strategies.searchers.hypergradient.points import point_of
from strategies.space import Float, SearchSpace

SIZE = 40
TARGET = jnp.asarray(np.random.default_rng(0).normal(size=SIZE))


def waves(w, h, batch):
    """Curvature at most one: gradient descent is stable below a learning rate of two."""
    return jnp.sum(1 - jnp.cos(w - h["centre"]))


def to_target(w, h, batch):
    return 0.5 * jnp.sum((w - TARGET) ** 2)


def measured(inner, rate, **options):
    problem = BilevelProblem(inner, to_target)
    start = jnp.asarray(np.random.default_rng(1).normal(size=SIZE))
    estimator = Unrolled(optax.sgd(rate), 30)
    settings = {"estimator": estimator, "step": 1e-2, **options}
    return metasmoothness(problem, start, {"centre": jnp.zeros(SIZE)}, **settings)


def test_a_quadratic_training_is_smooth():
    found = measured(lambda w, h, b: 0.5 * jnp.sum((w - h["centre"]) ** 2), 0.3)
    assert found.value == pytest.approx(1, abs=1e-12)
    assert found.error < 1e-12
    # The outer loss is quadratic in the step: the prediction lacks its curvature.
    assert found.agreement > 0.99
    assert found.agreement_error < 0.01
    slope = (1 - 0.7**30) * 1e-2
    np.testing.assert_allclose(found.changes - found.predicted, 0.5 * SIZE * slope**2, rtol=1e-6)


def test_a_chaotic_training_is_not():
    smooth, chaotic = measured(waves, 0.5), measured(waves, 7.0)
    assert smooth.value > 0.99
    assert smooth.agreement > 0.99
    assert abs(chaotic.value) < 0.5
    assert abs(chaotic.agreement) < 0.9
    assert chaotic.error > 10 * smooth.error
    assert "metasmoothness" in str(chaotic)


def test_each_hyperparameter_may_have_a_step_of_its_own():
    found = measured(waves, 0.5, step={"centre": np.linspace(1e-3, 1e-2, SIZE)}, directions=2)
    assert found.value > 0.99


def test_it_is_the_published_formula():
    """Written out for a training whose end is known: `w = noise(λ)`, each entry by itself."""
    problem = BilevelProblem(lambda w, h, b: 0.5 * jnp.sum((w - jnp.sin(300 * h)) ** 2), to_target)
    h, step = jnp.linspace(0, 1, SIZE), 0.01
    found = metasmoothness(
        problem, jnp.zeros(SIZE), h, estimator=Unrolled(optax.sgd(1.0), 1), step=step, directions=2
    )
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(2, SIZE))
    ends = [np.sin(300 * (np.asarray(h) + k * step * signs)) for k in (0, 1, 2)]
    agree = np.sign(ends[1] - ends[0]) * np.sign(ends[2] - ends[1])
    size = np.abs(ends[2] - ends[0])
    assert found.value == pytest.approx(np.mean((size * agree).sum(1) / size.sum(1)), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step: expected positive"),
        ({"step": {"centre": np.ones(3)}}, "step: expected a positive number"),
        ({"step": {"center": 1.0}}, "step: expected a positive number"),
        ({"directions": 1}, "directions: expected an integer >= 2"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        measured(waves, 0.5, **options)


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 2.0])
def test_the_noise_of_a_move_is_recovered(noise):
    rng = np.random.default_rng(3)
    slopes, noises = rng.normal(size=400_000), noise / 2**0.5 * rng.normal(size=(3, 400_000))
    ends = [k * slopes + noises[k] for k in range(3)]
    found = noise_of(smoothness_of(ends[1] - ends[0], ends[2] - ends[1]))
    assert float(found) == pytest.approx(noise, rel=0.02)


def test_no_smooth_part_is_infinite_noise_and_a_straight_line_none():
    noise = np.asarray(noise_of(jnp.asarray([1.0, 0.0, -0.3, jnp.nan])))
    np.testing.assert_array_equal(noise, [0, np.inf, np.inf, np.inf])


PROBLEM = BilevelProblem(waves, to_target)
START = jnp.asarray(np.random.default_rng(1).normal(size=SIZE))
CENTRE = {"centre": jnp.zeros(SIZE)}
PLAIN = Unrolled(lambda h: optax.sgd(h["rate"]), 30)


def at(rate, estimator, **options):
    """The rate is an input, so that both trainings are one program."""
    h = {**CENTRE, "rate": jnp.asarray(rate)}
    return hypergradient(PROBLEM, START, h, estimator=estimator, **options)


CHECKED = Metasmooth(PLAIN, {"centre": 1e-2, "rate": 1e-4})
ALGORITHM = Alternating(CHECKED, optax.sgd(1e-3), start="cold")


def test_a_smooth_training_keeps_its_hypergradient():
    plain, checked = at(0.5, PLAIN), at(0.5, CHECKED)
    np.testing.assert_array_equal(plain.grad["centre"], checked.grad["centre"])
    assert checked.value == plain.value
    assert checked.state.metasmoothness > 0.98
    assert plain.info.error <= checked.info.error < 0.2
    assert at(0.5, CHECKED, strict=True).value == plain.value


def test_a_chaotic_one_is_not_trusted_by_anyone():
    # Its own estimate is that of rounding: it does not know.
    with pytest.raises(InaccurateHypergradientError, match="not metasmooth"):
        at(7.0, CHECKED, strict=True)
    with pytest.warns(UserWarning, match="metasmooth"):
        found = at(7.0, CHECKED)
    assert found.info.error > 1
    assert report(found).gradient_error > 1


def test_moves_begin_at_a_training_on_their_own_batch():
    """Fitted to one batch, asked about another: the solution is far away, and as smooth."""
    problem = BilevelProblem(lambda w, h, b: 0.5 * jnp.sum((w - h["centre"] - b) ** 2), to_target)
    checked = Metasmooth(ImplicitDifferentiation(Newton()), 1e-2)
    here, there = jnp.asarray(0.0), jnp.asarray(5.0)
    state = checked.init(problem, START, CENTRE, here)
    state, _ = checked.fit(problem, state, CENTRE, here)
    found = checked.hypergradient(problem, state, CENTRE, there, there)
    assert float(found.state.metasmoothness) == pytest.approx(1, abs=1e-9)


def test_an_outer_step_is_taken_only_where_the_training_is_smooth():
    def moved(rate):
        h = {**CENTRE, "rate": jnp.asarray(rate)}
        return run(PROBLEM, ALGORITHM, START, h, None, None, steps=2)

    smooth = moved(0.5)
    assert np.all(np.asarray(smooth.state.hparams["centre"]) != 0)
    assert all(row["accepted"] for row in smooth.history)
    with pytest.warns(UserWarning, match="no step is taken along it.*is the training smooth over"):
        chaotic = moved(7.0)
    assert chaotic.state.hparams["rate"] == 7.0
    assert not any(row["accepted"] for row in chaotic.history)


def test_a_searcher_does_without_its_gradient():
    def objective(config):
        with warnings.catch_warnings(action="ignore"):
            found = at(config["rate"], CHECKED)
        return report(found, {"rate": found.grad["rate"]})

    def gradient(low, high):
        space = SearchSpace({"rate": Float(low, high)})
        found = minimize(objective, space, searcher=HypergradientSearcher(space), trials=1)
        return point_of(found.history[0]).gradient

    assert np.all(np.isfinite(gradient(0.4, 0.6)))
    assert np.all(np.isnan(gradient(6.9, 7.1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Metasmooth(optax.sgd(0.1), 0.1), "expected an Estimator"),
        (lambda: Metasmooth(PLAIN, -0.1), "step: expected positive"),
        (lambda: Metasmooth(PLAIN, "far"), "step: expected positive"),
        (lambda: Metasmooth(PLAIN, 0.1, directions=0), "directions: expected an integer"),
        (lambda: Metasmooth(PLAIN, 0.1, seed="one"), "seed: expected an integer >= 0"),
        (lambda: Metasmooth(ImplicitDifferentiation(), 0.1), "expected one that trains"),
        (lambda: measured(waves, 0.5, estimator=ImplicitDifferentiation()), "one that trains"),
        (lambda: at(0.5, Metasmooth(PLAIN, {"centre": 0.1})), "pytree like hparams"),
    ],
)
def test_bad_input_of_the_estimator(make, message):
    with pytest.raises(ValueError, match=message):
        make()
