"""Converting whole models: same output, named refusals, linearised output, back again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.self_tuning import (
    SelfTuningConv,
    SelfTuningLinear,
    function_to_self_tuning,
    respond,
    squared_norm,
    to_self_tuning,
)
from hypergrad.self_tuning.convert import response_spec

HPARAMS = {"a": jnp.zeros(2), "b": jnp.zeros(()), "n": 3}
E = jnp.array([0.2, -0.1, 0.4])


class Network(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.MLP

    def __init__(self, key):
        conv_key, head_key = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 2, 3, key=conv_key)
        self.norm = eqx.nn.LayerNorm((2, 4, 4))
        self.drop = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.MLP(32, 3, 8, 1, key=head_key)

    def __call__(self, x, key):
        x = self.drop(jax.nn.relu(self.norm(self.conv(x))), key=key)
        return self.head(x.ravel())


def randomised(model, key):
    """The model with random response gates instead of zeros."""
    response, rest = eqx.partition(model, response_spec(model))
    leaves, structure = jax.tree.flatten(response)
    keys = jax.random.split(key, len(leaves))
    new = [0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, new), rest)


def test_drop_in_replacement(key):
    network, x = Network(key), jax.random.normal(key, (1, 6, 6))
    model = to_self_tuning(network, HPARAMS, key=key)
    assert model.size == 3
    assert isinstance(model.model.conv, SelfTuningConv)
    assert isinstance(model.model.head.layers[0], SelfTuningLinear)
    np.testing.assert_array_equal(model(x, key), network(x, key))
    # V starts at zero: no response before training.
    np.testing.assert_allclose(model.at(E)(x, key), network(x, key), rtol=1e-12)
    assert eqx.tree_equal(model.fold(), network)
    np.testing.assert_allclose(model.squared_norm(), squared_norm(network), rtol=1e-12)


def test_exact_and_linearised_output(key):
    network, x = Network(key), jax.random.normal(key, (1, 6, 6))
    model = randomised(to_self_tuning(network, HPARAMS, key=key), key)
    exact = model.at(E)
    np.testing.assert_allclose(exact(x, key), exact.fold()(x, key), rtol=1e-11)
    linear = model.at(E, linearised=True)(x, key)
    base, constant = eqx.partition(network, eqx.is_inexact_array)
    change = jax.tree.map(jnp.subtract, eqx.filter(exact.fold(), eqx.is_inexact_array), base)
    # Weight changes of the affine form are linear in e, so that its tangent is the change itself.
    value, tangent = jax.jvp(lambda w: eqx.combine(w, constant)(x, key), (base,), (change,))
    np.testing.assert_allclose(linear, value + tangent, rtol=1e-11)
    assert jnp.max(jnp.abs(linear - exact(x, key))) > 1e-6


def test_gradient_of_a_linearised_output_and_the_products_it_takes(key):
    width, examples = 256, 32
    network = eqx.nn.MLP(16, width, width, 1, key=key)
    model = randomised(to_self_tuning(network, HPARAMS, key=key), key)
    response, rest = eqx.partition(model, response_spec(model))
    base, constant = eqx.partition(network, eqx.is_inexact_array)
    es = 0.1 * jax.random.normal(key, (examples, 3))
    xs = jax.random.normal(key, (examples, 16))

    def loss(response, es, xs):
        model = eqx.combine(response, rest)
        outputs = jax.vmap(lambda e, x: model.at(e, linearised=True)(x))(es, xs)
        return jnp.sum(jnp.square(outputs))

    def by_weights(response, e, x):
        there = eqx.filter(eqx.combine(response, rest).at(e).fold(), eqx.is_inexact_array)
        change = jax.tree.map(jnp.subtract, there, base)
        value, tangent = jax.jvp(lambda w: eqx.combine(w, constant)(x), (base,), (change,))
        return jnp.sum(jnp.square(value + tangent))

    ours = eqx.filter_grad(loss)(response, es[:1], xs[:1])
    expected = eqx.filter_grad(by_weights)(response, es[0], xs[0])
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)

    # For each example the first layer needs three products: by the base weights, by the response,
    # and the gradient of the response. The second needs five: the base weights also meet the
    # change of their input, forwards and backwards. Nothing goes back through the base output.
    compiled = eqx.filter_jit(eqx.filter_grad(loss)).lower(response, es, xs).compile()
    products = 3 * 16 * width + 5 * width * width
    assert compiled.compiled.cost_analysis()["flops"] < 1.1 * 2 * examples * products


def test_respond_reaches_every_model_of_a_pytree(key):
    layer = eqx.nn.Linear(2, 2, key=key)
    pair = {"f": to_self_tuning(layer, HPARAMS, key=key), "scale": jnp.ones(2)}
    placed = respond(pair, E)
    assert jnp.array_equal(placed["f"].displacement, E)
    assert placed["scale"] is pair["scale"]


def count(tree):
    return sum(a.size for a in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))


def test_response_weights_are_told_from_the_others(key):
    model = to_self_tuning(Network(key), HPARAMS, key=key)
    response, base = eqx.partition(model, response_spec(model))
    sizes = [
        sum(a.size for a in jax.tree.leaves(eqx.filter(t, eqx.is_inexact_array)))
        for t in (response, base)
    ]
    plain = sum(a.size for a in jax.tree.leaves(eqx.filter(Network(key), eqx.is_inexact_array)))
    assert sizes[1] == plain
    gates = 2 * 2 + 2 * 32 + 2 * 8 + 2 * 3
    assert sizes[0] == plain - 2 * 32 + 3 * gates


class Scaled(eqx.Module):
    scale: jax.Array
    layer: eqx.nn.Linear
    gru: eqx.nn.GRUCell

    def __init__(self, key):
        self.scale = jnp.ones(2)
        self.layer = eqx.nn.Linear(2, 2, key=key)
        self.gru = eqx.nn.GRUCell(2, 2, key=key)

    def __call__(self, x):
        return self.gru(self.scale * self.layer(x), x)


def test_layers_without_a_form_are_named_and_can_be_fixed(key):
    network = Scaled(key)
    with pytest.raises(ValueError, match=r"'scale' \(Scaled\), 'gru' \(GRUCell\).*fixed"):
        to_self_tuning(network, HPARAMS, key=key)
    with pytest.raises(ValueError, match=r"form for 'gru' \(GRUCell\)\."):
        to_self_tuning(network, HPARAMS, key=key, fixed=["scale"])
    model = to_self_tuning(network, HPARAMS, key=key, fixed=["scale", eqx.nn.GRUCell])
    assert isinstance(model.model.layer, SelfTuningLinear)
    assert eqx.tree_equal(model.model.gru, network.gru)
    np.testing.assert_allclose(model(jnp.ones(2)), network(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"match nothing in the model: \['layers'\].*'scale'"):
        to_self_tuning(network, HPARAMS, key=key, fixed=["scale", "gru", "layers"])
    with pytest.raises(ValueError, match="no layer that could respond"):
        to_self_tuning(network, HPARAMS, key=key, fixed=["scale", "gru", "layer"])


class Normalised(eqx.Module):
    layer: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.layer = eqx.nn.Linear(3, 4, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(self.layer(x), state)


def test_batch_normalisation_is_refused_and_can_be_fixed(key):
    network, state = eqx.nn.make_with_state(Normalised)(key)
    refusal = r"form for 'norm' \(BatchNorm\)\. Leave such layers fixed.*fixed=\['norm'\]"
    with pytest.raises(ValueError, match=refusal):
        to_self_tuning(network, HPARAMS, key=key)
    model = randomised(to_self_tuning(network, HPARAMS, key=key, fixed=[eqx.nn.BatchNorm]), key)
    axes = {"in_axes": (0, None), "out_axes": (0, None), "axis_name": "batch"}
    x = jax.random.normal(key, (5, 3))
    far = model.at(E)
    ours, after = jax.vmap(far, **axes)(x, state)
    theirs, expected = jax.vmap(far.fold(), **axes)(x, state)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)
    assert eqx.tree_equal(after, expected, rtol=1e-11)
    # The derivative of the statistics is part of the linearised response.
    linear, _ = jax.vmap(model.at(E, linearised=True), **axes)(x, state)
    small = 1e-6
    near, _ = jax.vmap(model.at(small * E), **axes)(x, state)
    base, _ = jax.vmap(model, **axes)(x, state)
    np.testing.assert_allclose(linear - base, (near - base) / small, atol=1e-4)


def test_hyperparameters_must_be_continuous(key):
    layer = eqx.nn.Linear(2, 2, key=key)
    with pytest.raises(ValueError, match=r"'holes' has dtype int.*relaxation.*Discrete"):
        to_self_tuning(layer, {"holes": jnp.array(2)}, key=key)
    with pytest.raises(ValueError, match="no floating-point array"):
        to_self_tuning(layer, {"rate": 0.5}, key=key)


def plain(params, x):
    for name in ("Dense_0", "Dense_1"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return x


def plain_params(key):
    keys = jax.random.split(key, 2)
    return {
        f"Dense_{i}": {"kernel": jax.random.normal(k, (3, 3)), "bias": jnp.zeros(3)}
        for i, k in enumerate(keys)
    }


def test_plain_functions(key):
    params, x = plain_params(key), jnp.array([0.3, -0.2, 0.5])
    model = function_to_self_tuning(plain, params, HPARAMS, key=key)
    np.testing.assert_allclose(model(x), plain(params, x), rtol=1e-12)
    model = randomised(model, key)
    np.testing.assert_allclose(model.at(E)(x), plain(model.at(E).fold().params, x), rtol=1e-12)
    change = jax.tree.map(jnp.subtract, model.at(E).fold().params, params)
    value, tangent = jax.jvp(lambda p: plain(p, x), (params,), (change,))
    np.testing.assert_allclose(model.at(E, linearised=True)(x), value + tangent, rtol=1e-11)
    fixed = function_to_self_tuning(
        plain, params, HPARAMS, key=key, fixed=lambda path: path.startswith("Dense_1")
    )
    assert fixed.fold().params["Dense_1"]["kernel"] is params["Dense_1"]["kernel"]
    assert sum(jax.tree.leaves(response_spec(fixed))) == 3
    with pytest.raises(ValueError, match=r"'Dense_0/kernel' has shape \(3, 3\).*output_axis=2"):
        function_to_self_tuning(plain, params, HPARAMS, key=key, output_axis=2)
    with pytest.raises(ValueError, match="No array of `params` is left"):
        function_to_self_tuning(plain, params, HPARAMS, key=key, fixed=lambda path: True)


def test_convolution_as_a_plain_function(key):
    params = {"kernel": jax.random.normal(key, (3, 3, 2, 4))}

    def convolve(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=numbers
        )

    x = jax.random.normal(key, (1, 5, 5, 2))
    model = randomised(function_to_self_tuning(convolve, params, HPARAMS, key=key), key)
    node = model.model.params["kernel"]
    gates = node.gate @ E
    expected = convolve(params, x) + gates * convolve({"kernel": node.response}, x)
    np.testing.assert_allclose(model.at(E)(x), expected, rtol=1e-10)


def test_saturated_gates_are_counted(key):
    model = to_self_tuning(eqx.nn.Linear(2, 2, key=key), HPARAMS, key=key)
    gate = jnp.zeros((4, 3)).at[0, 0].set(2.0).at[1, 1].set(0.5)
    model = eqx.tree_at(lambda m: m.model.gate, model, gate)
    assert model.saturation(jnp.ones(3)) == 0.25
    assert model.saturation(jnp.full(3, 3.0)) == 0.5
    assert model.saturation(jnp.full(3, 0.1)) == 0.0


def test_a_scan_over_a_cell_responds_as_the_loop_it_stands_for():
    class Recurrent(eqx.Module):
        cell: eqx.nn.LSTMCell
        loop: bool = eqx.field(static=True)

        def __call__(self, xs):
            def step(hidden, x):
                hidden = self.cell(x, hidden)
                return hidden, hidden[0]

            hidden = jnp.zeros(3), jnp.zeros(3)
            if not self.loop:
                return jax.lax.scan(step, hidden, xs)[1]
            outputs = []
            for x in xs:
                hidden, output = step(hidden, x)
                outputs.append(output)
            return jnp.stack(outputs)

    key = jax.random.key(0)
    xs, noise = jax.random.normal(key, (2, 5, 2)), jax.random.normal(key, (2, 3))

    def loss_gradient(loop):
        model = to_self_tuning(Recurrent(eqx.nn.LSTMCell(2, 3, key=key), loop), HPARAMS, key=key)
        gates = lambda m: m.model.cell.gate  # noqa: E731
        model = eqx.tree_at(gates, model, jax.random.normal(key, gates(model).shape))

        def loss(model):
            outputs = jax.vmap(lambda e, x: model.at(e, linearised=True)(x))(noise, xs)
            return jnp.sum(outputs**2)

        return jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(loss))(model))

    for one, other in zip(loss_gradient(False), loss_gradient(True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
