"""Metasmoothness: near one for a smooth training, small for a chaotic one."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, metasmoothness
from hypergrad.unrolled import Unrolled

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
        ({"directions": 1}, "directions: expected an integer of at least 2"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        measured(waves, 0.5, **options)
