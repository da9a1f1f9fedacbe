"""Methods for few shots: their gradients, and one that is a special case of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.few_shot_parts import encoder, hyper_representation, maml, prototypical
from experiments.few_shot_parts.episodes import QUERIES, SHOTS, WAYS, Places


@pytest.fixture
def episodes():
    """Two tasks of random pictures."""
    rng = np.random.default_rng(0)
    characters = jnp.asarray(rng.random((12, 20, encoder.SIDE**2)), jnp.float32)
    return Places.draw(rng, (12, 20), 2).episodes(characters)


def test_a_task_has_different_characters_and_drawings():
    places = Places.draw(np.random.default_rng(0), (12, 20), 50)
    assert places.drawing.shape == (50, WAYS, SHOTS + QUERIES)
    assert all(len(set(row)) == WAYS for row in places.character.tolist())
    assert all(len(set(row)) == SHOTS + QUERIES for task in places.drawing.tolist() for row in task)


@pytest.mark.parametrize("method", [hyper_representation, maml], ids=["representation", "maml"])
def test_the_hypergradient_is_the_derivative_of_the_written_out_training(method, episodes):
    weights = method.initialise(jax.random.key(0))
    unrolled = method.METHOD.gradient(weights, episodes)
    written = jax.grad(method.METHOD.query_loss)(weights, episodes)
    for found, expected in zip(jax.tree.leaves(unrolled), jax.tree.leaves(written), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_one_step_from_zero_makes_a_prototypical_network(monkeypatch, episodes):
    monkeypatch.setattr(hyper_representation, "STEPS", 1)
    weights = hyper_representation.initialise(jax.random.key(0))
    temperature = 10 / jnp.exp(weights["log_step"])
    closest = {"layers": weights["layers"], "log_temperature": jnp.log(temperature)}
    found, expected = (
        jax.nn.softmax(scores, axis=-1)
        for scores in (
            hyper_representation.scores(weights, episodes),
            prototypical.scores(closest, episodes),
        )
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)
