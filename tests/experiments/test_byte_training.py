"""Trainings of the byte-level model that rivals are judged by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data.byte_model import initial, loss
from experiments.data.byte_training import KNOBS, USUAL, of_config, shape_over, train

STEPS = 6
PARAMS = initial(0, embedding=2, hidden=4)
BATCHES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (STEPS, 3, 12)), jnp.uint8)


def by_optax(optimizer):
    params, state = PARAMS, optimizer.init(PARAMS)
    gradient, update = jax.jit(jax.grad(loss)), jax.jit(optimizer.update)
    for batch in BATCHES:
        moves, state = update(gradient(params, None, batch), state, params)
        params = optax.apply_updates(params, moves)
    return params


def test_the_usual_settings_are_adam_with_a_cosine():
    line = jnp.asarray(0.01 * shape_over(STEPS, 0.0, 1.0, 0.05, "cosine"), jnp.float32)
    expected = by_optax(optax.adamw(lambda t: line[t], eps_root=1e-8, weight_decay=1e-5))
    found = train(of_config(USUAL, STEPS), PARAMS, BATCHES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    ("change", "moves"),
    [({"nesterov": True}, 1e-4), ({"clipped": True}, 0.0), ({"signs": True}, 1e-4)],
)
def test_what_has_no_derivative_has_an_effect(change, moves):
    usual, other = (train(of_config({**USUAL, **c}, STEPS), PARAMS, BATCHES) for c in ({}, change))
    gap = jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), usual, other))
    assert max(gap) >= moves
    assert all(np.isfinite(gap))


def test_the_knobs_are_fourteen_and_the_usual_ones_among_them():
    assert KNOBS.flatten(USUAL).keys() == KNOBS.domains.keys()
    assert len(USUAL) == 14


def test_the_shape_rises_stays_and_falls():
    line = shape_over(100, 0.2, 0.3, 0.1, "linear")
    assert line[0] == pytest.approx(0.05)
    np.testing.assert_allclose(line[20:69], 1)
    assert line[-1] == pytest.approx(0.13)
    assert np.all(np.diff(line[:20]) > 0)
    assert np.all(np.diff(line[71:]) < 0)
