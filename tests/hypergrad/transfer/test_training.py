"""Trainings under a parametrisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.transfer import Probe, adam_atan2, coordinate_check, infer

X = np.random.default_rng(5).normal(size=(16, 8))
Y = np.arange(16) % 3


def draw(width, key=None):
    """Values of size 1/√fan-in, as frameworks draw them. By NumPy: nothing to compile."""
    rng = np.random.default_rng(0 if key is None else int(jax.random.key_data(key)[-1]))
    sizes = [(8, width), (width, width), (width, 3)]
    return [
        {"w": jnp.asarray(rng.normal(size=s) / np.sqrt(s[0])), "b": jnp.asarray(np.zeros(s[1]))}
        for s in sizes
    ]


def layers(params):
    h, found = X, {}
    for at, layer in enumerate(params):
        h = h @ layer["w"] + layer["b"]
        found[f"layer {at}"] = h
        h = jnp.tanh(h)
    return found


def loss(params):
    logits = layers(params)["layer 2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


def training(rule, transform):
    """`run(params, scale of the loss)`: four steps, compiled once."""
    optimizer = rule.optimizer(transform)

    @jax.jit
    def run(params, scale=1.0):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: scale * loss(rule.forward(p)))(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=4)[0][0]

    return run


@pytest.mark.parametrize("kind", ["standard", "mup", "u-mup", "completep"])
def test_at_the_base_nothing_is_changed(kind):
    rule = infer(draw(16), draw(32), kind=kind).at(draw(16))
    params, transform = draw(16), optax.adamw(0.01)
    # The very same arrays and the very same optimizer: not one operation is added.
    assert rule.optimizer(transform) is transform
    for found in (rule.forward(params), rule.init(params, params)):
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (params, found)), strict=True))


def test_bit_for_bit_at_the_base():
    rule = infer(draw(16), draw(32)).at(draw(16))
    transform = optax.adamw(0.01)

    @jax.jit
    def plain(params):
        def step(carry, _):
            params, state = carry
            updates, state = transform.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, transform.init(params)), length=4)[0][0]

    found = training(rule, transform)(rule.init(draw(16), draw(16)))
    jax.tree.map(np.testing.assert_array_equal, plain(draw(16)), found)


@pytest.mark.parametrize(
    ("family", "transform"),
    [("adam", optax.adamw(0.02, eps=1e-3, weight_decay=0.1)), ("sgd", optax.sgd(0.1, 0.9))],
)
def test_folded_is_the_same_training(family, transform):
    # A large epsilon and decay, so that their scaling is seen.
    makes = [infer(draw(16), draw(64), optimizer=family, fold=fold) for fold in (False, True)]
    with_multiplier, without = (
        rule.forward(training(rule, transform)(rule.init(draw(64), draw(16)))) for rule in makes
    )
    assert all(f.forward == 1 for f in makes[1].factors.values())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), with_multiplier, without
    )


def test_initial_values_follow_the_rule_whatever_the_model_draws():
    rule = infer(draw(16), draw(256))
    found = rule.init(draw(256), draw(16))
    # The readout was drawn smaller with width, and begins as at the base, to a power of √m.
    np.testing.assert_allclose(found[2]["w"], 4 * draw(256)[2]["w"], rtol=1e-12)
    np.testing.assert_array_equal(found[1]["w"], draw(256)[1]["w"])
    large = [
        dict(layer, w=layer["w"] * np.sqrt(s))
        for layer, s in zip(draw(256), (8, 256, 256), strict=True)
    ]
    small = [
        dict(layer, w=layer["w"] * np.sqrt(s))
        for layer, s in zip(draw(16), (8, 16, 16), strict=True)
    ]
    again = rule.init(large, small)
    # Drawn of size one: the hidden layer is brought to 1/√m, the readout stays.
    np.testing.assert_allclose(again[1]["w"], large[1]["w"] / 4, rtol=1e-12)
    np.testing.assert_array_equal(again[2]["w"], large[2]["w"])


def probe(kind, optimizer, transform):
    def make(width, key):
        base, params = draw(64, key), draw(width, key)
        rule = infer(draw(64), draw(128), kind=kind, optimizer=optimizer).at(params)
        return Probe(
            rule.init(params, base),
            lambda p: loss(rule.forward(p)),
            lambda p: layers(rule.forward(p)),
            rule.optimizer(transform),
        )

    return make


def test_coordinates_of_every_layer_stay_with_mup_and_do_not_without():
    widths, adam = [64, 1024], optax.adam(2.0**-4)
    # The readout's size after three large steps varies by a third from draw to draw.
    mup = coordinate_check(probe("mup", "adam", adam), widths, seeds=3)
    standard = coordinate_check(probe("standard", "adam", adam), widths, seeds=1)
    assert mup.worst <= 0.1
    assert standard.worst >= 0.4
    assert mup.sizes["layer 1"].shape == (4, 2)
    figure = mup.plot()
    assert [axes.get_title()[:7] for axes in figure.axes] == ["layer 0", "layer 1", "layer 2"]


def test_coordinates_under_gradient_steps():
    check = coordinate_check(probe("mup", "sgd", optax.sgd(1.0)), [64, 1024], seeds=1)
    assert max(abs(check.slopes[f"layer {at}"]) for at in (0, 1)) <= 0.1


def test_layers_come_in_the_order_of_the_model():
    def make(width, key):
        params = {"w": np.ones(width)}
        layers = lambda p: {"stem": p["w"], "body": 2 * p["w"], "a head": 3 * p["w"]}  # noqa: E731
        return Probe(params, lambda p: jnp.sum(p["w"] ** 2), layers, optax.sgd(0.0))

    check = coordinate_check(make, [2, 4], steps=1, seeds=1)
    assert list(check.slopes) == ["stem", "body", "a head"]
    assert [size[0, 0] for size in check.sizes.values()] == [1, 2, 3]


def test_coordinates_need_two_widths():
    with pytest.raises(ValueError, match="at least two"):
        coordinate_check(probe("mup", "adam", optax.adam(0.1)), [64])


def test_arc_tangent_does_not_see_the_scale_of_the_loss():
    rule = infer(draw(16), draw(32)).at(draw(16))
    run = training(rule, adam_atan2(0.01))
    ends = [run(draw(16), scale) for scale in (1.0, 1e-8)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), *ends)
    run = training(rule, optax.adam(0.01))
    moved = [run(draw(16), scale) for scale in (1.0, 1e-8)]
    assert max(float(jnp.max(jnp.abs(a["w"] - b["w"]))) for a, b in zip(*moved, strict=True)) > 1e-3
