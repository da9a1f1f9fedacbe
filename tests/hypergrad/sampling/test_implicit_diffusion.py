"""Implicit diffusion against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, hypergradient
from hypergrad.outer import Alternating, run
from hypergrad.sampling import ImplicitDiffusion, Langevin, SamplingProblem


def gaussian(x, theta, batch):
    """`N(theta["mean"], exp(-theta["log_precision"]))` in every coordinate."""
    return 0.5 * jnp.exp(theta["log_precision"]) * jnp.sum((x - theta["mean"]) ** 2)


SQUARE = SamplingProblem(gaussian, lambda x, theta, batch: jnp.sum(x**2))


def exact(mean, log_precision, size):
    """`E sum x²` and its derivatives in the mean's entries and the log precision."""
    variance = jnp.exp(-log_precision)
    value = jnp.sum(mean**2) + size * variance
    return value, 2 * mean, -size * variance


def test_the_covariance_formula_is_the_derivative_of_the_expectation():
    """An exact sample in place of Langevin's: the error left is that of 200,000 particles."""
    mean, log_precision = jnp.array([1.0, -0.5]), jnp.asarray(0.7)
    noise = jax.random.normal(jax.random.key(1), (200_000, 2))
    cloud = mean + noise * jnp.exp(-0.5 * log_precision)
    estimator = ImplicitDiffusion(Langevin(1e-9))
    found = hypergradient(
        SQUARE,
        cloud,
        {"mean": mean, "log_precision": log_precision},
        None,
        None,
        estimator=estimator,
    )
    value, d_mean, d_precision = exact(mean, log_precision, 2)
    np.testing.assert_allclose(found.value, value, rtol=0.01)
    truth = np.array([*d_mean, d_precision])
    received = np.array([*found.grad["mean"], found.grad["log_precision"]])
    away = np.linalg.norm(received - truth) / np.linalg.norm(truth)
    assert away < 0.02
    # The standard error covers it, and is not many times larger.
    assert away < 4 * float(found.info.error) < 0.1
    assert float(found.info.inner_residual) < 0.01


def test_langevin_reaches_the_distribution_and_the_residual_sees_when_it_has_not():
    theta = {"mean": jnp.zeros(3), "log_precision": jnp.asarray(0.0)}
    start = 3.0 * jax.random.normal(jax.random.key(0), (4096, 3))
    far = ImplicitDiffusion(Langevin(0.05), steps=1)
    near = ImplicitDiffusion(Langevin(0.05), steps=200)
    early = hypergradient(SQUARE, start, theta, None, None, estimator=far)
    late = hypergradient(SQUARE, start, theta, None, None, estimator=near)
    assert float(early.info.inner_residual) > 1.0
    assert float(late.info.inner_residual) < 0.06
    np.testing.assert_allclose(late.value, 3.0, rtol=0.06)


def test_a_statistic_gives_functions_of_expectations():
    """`R = (E x − 2)²`: its derivative in the mean is `2 (mean − 2)`, in the precision zero."""
    problem = SamplingProblem(
        gaussian, lambda mean, theta, batch: jnp.sum((mean - 2.0) ** 2), lambda x, batch: x
    )
    theta = {"mean": jnp.array([0.5]), "log_precision": jnp.asarray(0.0)}
    cloud = 0.5 + jax.random.normal(jax.random.key(2), (100_000, 1))
    estimator = ImplicitDiffusion(Langevin(1e-9))
    found = hypergradient(problem, cloud, theta, None, None, estimator=estimator)
    np.testing.assert_allclose(found.grad["mean"], [-3.0], rtol=0.03)
    np.testing.assert_allclose(found.grad["log_precision"], 0.0, atol=0.05)


def test_the_single_loop_finds_the_best_mean():
    problem = SamplingProblem(
        lambda x, mean, batch: 0.5 * jnp.sum((x - mean) ** 2),
        lambda x, mean, batch: jnp.sum((x - 2.0) ** 2),
    )
    cloud = jax.random.normal(jax.random.key(3), (512, 1))
    algorithm = Alternating(ImplicitDiffusion(Langevin(0.05)), optax.adam(0.05))
    found = run(problem, algorithm, cloud, jnp.array([-1.0]), None, None, steps=300, every=100)
    np.testing.assert_allclose(found.hparams, [2.0], atol=0.15)
    assert found.history[-1]["inner_residual"] < 0.3


def test_a_sampler_that_diverges_is_a_breakdown_and_no_nan():
    theta = {"mean": jnp.zeros(1), "log_precision": jnp.asarray(0.0)}
    problem = SamplingProblem(
        lambda x, theta, batch: jnp.sum(x**4), lambda x, theta, batch: x[0] ** 2
    )
    cloud = 100.0 * jnp.ones((64, 1))
    estimator = ImplicitDiffusion(Langevin(1.0), steps=50)
    with pytest.warns(UserWarning, match="finite|error"):
        found = hypergradient(problem, cloud, theta, None, None, estimator=estimator)
    assert bool(found.info.breakdown)
    assert bool(jnp.isinf(found.info.error))
    assert bool(jnp.all(jnp.isfinite(found.state.params)))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Langevin(0.0), "step"),
        (lambda: Langevin(float("inf")), "step"),
        (lambda: Langevin(jnp.asarray(-0.1)), "step"),
        (lambda: ImplicitDiffusion(Langevin(0.1), steps=0), "steps"),
        (lambda: ImplicitDiffusion(Langevin(0.1), blocks=1), "blocks"),
    ],
)
def test_bad_options_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize(
    "cloud", [jnp.zeros((3, 1)), {"a": jnp.zeros((64, 1)), "b": jnp.zeros(65)}]
)
def test_what_is_no_cloud_is_refused(cloud):
    with pytest.raises(ValueError, match="cloud"):
        ImplicitDiffusion(Langevin(0.1)).init(SQUARE, cloud, None, None)


def test_a_factor_of_another_size_is_refused():
    theta = {"mean": jnp.zeros(2), "log_precision": jnp.asarray(0.0)}
    dynamics = Langevin(0.1, factor=jnp.ones(3))
    with pytest.raises(ValueError, match="factor"):
        dynamics.move(SQUARE, jnp.zeros((4, 2)), theta, None, jax.random.key(0))


def test_another_kind_of_problem_is_refused():
    problem = BilevelProblem(gaussian, gaussian)
    with pytest.raises(ValueError, match="SamplingProblem"):
        ImplicitDiffusion(Langevin(0.1)).init(problem, jnp.zeros((64, 1)), None, None)
