"""Regularisers of traced strength, against what they are meant to do to one example."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.self_tuning import regularisers


def test_dropout_rate_and_mean(key):
    x = jnp.ones(20000)
    y = jax.jit(regularisers.dropout)(x, jnp.array(0.3), key)
    np.testing.assert_allclose(jnp.mean(y == 0), 0.3, atol=0.02)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    assert jax.grad(lambda r: jnp.sum(regularisers.dropout(x, r, key)))(0.3) == 0.0


def test_set_dropout_replaces_rates_in_order(key):
    model = eqx.nn.Sequential([eqx.nn.Dropout(0.1), eqx.nn.Identity(), eqx.nn.Dropout(0.2)])
    rates = regularisers.set_dropout(model, jnp.array([0.0, 0.9]))
    assert [float(rates[i].p) for i in (0, 2)] == [0.0, 0.9]
    assert float(regularisers.set_dropout(model, 0.5)[2].p) == 0.5
    with pytest.raises(
        ValueError, match="expected 2 rates for the model's Dropout layers, received 3"
    ):
        regularisers.set_dropout(model, jnp.zeros(3))
    with pytest.raises(ValueError, match="expected a model with Dropout layers"):
        regularisers.set_dropout(eqx.nn.Identity(), 0.5)


def test_noise_and_brightness_have_their_strength(key):
    noisy = regularisers.input_noise(jnp.zeros(20000), jnp.array(0.5), key)
    np.testing.assert_allclose(jnp.std(noisy), 0.5, rtol=0.03)
    factors = jax.vmap(lambda k: regularisers.brightness(jnp.ones(1), 0.2, k))(
        jax.random.split(key, 500)
    )
    assert jnp.all(jnp.abs(factors - 1) <= 0.2)
    assert jnp.max(jnp.abs(factors - 1)) > 0.19


def test_label_smoothing():
    target = regularisers.smooth_labels(jnp.array(1), 4, jnp.array(0.2))
    np.testing.assert_allclose(target, [0.05, 0.85, 0.05, 0.05], rtol=1e-12)


def test_shift_moves_and_interpolates():
    image = jnp.arange(1.0, 13.0).reshape(1, 3, 4)
    for offset, expected in (
        (0.0, image[0]),
        (1.0, jnp.zeros((3, 4)).at[1:].set(image[0, :2])),
        (-2.0, jnp.zeros((3, 4)).at[:1].set(image[0, 2:])),
        (9.0, jnp.zeros((3, 4))),
    ):
        moved = regularisers._shift(image, jnp.array(offset), axis=1)
        np.testing.assert_allclose(moved[0], expected, atol=1e-12)
    half = regularisers._shift(image, jnp.array(0.5), axis=2)
    np.testing.assert_allclose(half[0, 0], [0.5, 1.5, 2.5, 3.5], rtol=1e-12)


def test_shift_size_bounds_the_movement(key):
    spot = jnp.zeros((1, 21, 21)).at[0, 10, 10].set(1.0)
    for k in jax.random.split(key, 5):
        moved = regularisers.shift(spot, jnp.array(3.0), k)
        np.testing.assert_allclose(jnp.sum(moved), 1.0, rtol=1e-6)
        rows, columns = jnp.nonzero(moved[0])
        assert jnp.max(jnp.abs(rows - 10)) <= 3
        assert jnp.max(jnp.abs(columns - 10)) <= 3
    np.testing.assert_allclose(regularisers.shift(spot, jnp.array(0.0), key), spot, atol=1e-12)


def test_cutout_size_and_number(key):
    image = jnp.ones((2, 20, 20))
    cut = jax.jit(lambda length, holes: regularisers.cutout(image, length, holes, key, most=3))
    assert jnp.array_equal(cut(6.0, 0.0), image)
    assert jnp.array_equal(cut(0.0, 3.0), image)
    one, three = cut(6.0, 1.0), cut(6.0, 3.0)
    assert 0 < jnp.sum(one == 0) <= 2 * 36
    assert jnp.sum(three == 0) > jnp.sum(one == 0)
    assert jnp.all((one == 0) <= (three == 0))
    assert jnp.array_equal(one[0], one[1])
