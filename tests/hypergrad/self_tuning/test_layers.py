"""Self-tuning layers: the gated output is that of the layer with the weights W(e)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.self_tuning import gating, layers
from hypergrad.self_tuning.pytree import SelfTuningArray

SIZE = 3
E = jnp.array([0.7, -0.4, 1.3])


def build(kind, key):
    """A self-tuning layer with a random response, and an input."""
    layer_key, form_key, gate_key, input_key = jax.random.split(key, 4)
    match kind:
        case "linear":
            layer = eqx.nn.Linear(4, 5, key=layer_key)
            node, inputs = layers.SelfTuningLinear(layer, SIZE, key=form_key), ((4,),)
        case "linear to scalar":
            layer = eqx.nn.Linear(4, "scalar", key=layer_key)
            node, inputs = layers.SelfTuningLinear(layer, SIZE, key=form_key), ((4,),)
        case "conv1d":
            layer = eqx.nn.Conv1d(
                2, 3, 3, use_bias=False, padding_mode="CIRCULAR", padding=1, key=layer_key
            )
            node, inputs = layers.SelfTuningConv(layer, SIZE, key=form_key), ((2, 6),)
        case "conv2d":
            layer = eqx.nn.Conv2d(2, 4, 3, stride=2, padding="SAME", groups=2, key=layer_key)
            node, inputs = layers.SelfTuningConv(layer, SIZE, key=form_key), ((2, 6, 5),)
        case "layer norm":
            layer = eqx.nn.LayerNorm((2, 3))
            node, inputs = layers.SelfTuningNorm(layer, SIZE), ((2, 3),)
        case "group norm":
            layer = eqx.nn.GroupNorm(2, 4)
            node, inputs = layers.SelfTuningNorm(layer, SIZE), ((4, 3),)
        case "lstm":
            layer = eqx.nn.LSTMCell(3, 4, key=layer_key)
            node, inputs = layers.SelfTuningLSTMCell(layer, SIZE, key=form_key), ((3,), (4,), (4,))
        case "lstm without bias":
            layer = eqx.nn.LSTMCell(3, 4, use_bias=False, key=layer_key)
            node, inputs = layers.SelfTuningLSTMCell(layer, SIZE, key=form_key), ((3,), (4,), (4,))
    gate = 0.3 * jax.random.normal(gate_key, node.gate.shape)
    node = eqx.tree_at(lambda n: n.gate, node, gate)
    keys = jax.random.split(input_key, len(inputs))
    arrays = [jax.random.normal(k, shape) for k, shape in zip(keys, inputs, strict=True)]
    return node, (arrays[0], *([tuple(arrays[1:])] if len(arrays) > 1 else []))


KINDS = [
    "linear",
    "linear to scalar",
    "conv1d",
    "conv2d",
    "group norm",
    "lstm",
    "lstm without bias",
]


def close(a, b, rtol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13), a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_gating_is_the_layer_with_affine_weights(kind, key):
    node, inputs = build(kind, key)
    close(node(*inputs), node.layer(*inputs))
    gated = gating.gated(node, E, False)
    folded = gated.fold()
    assert type(folded) is type(node.layer)
    close(gated(*inputs), folded(*inputs))
    # Affine in e: the weights at E and -E average to the base weights.
    opposite = gating.gated(node, -E, False).fold()
    base, here, there = (eqx.filter(m, eqx.is_array) for m in (node.layer, folded, opposite))
    close(jax.tree.map(lambda a, b: (a + b) / 2, here, there), base)
    assert not eqx.tree_equal(here, base)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "lstm", "group norm"])
def test_linearised_derivative_is_the_jacobian_product_of_the_weights(kind, key):
    node, inputs = build(kind, key)

    def by_gates(e, x):
        return gating.gated(node, e, True)(x, *inputs[1:])

    # Input and response both move: the derivative of the gated form at e = 0 has both parts.
    moved = jax.random.normal(key, inputs[0].shape)
    _, change = jax.jvp(by_gates, (jnp.zeros(SIZE), inputs[0]), (E, moved))

    def by_weights(t):
        base, constant = eqx.partition(node.layer, eqx.is_array)
        there = eqx.filter(gating.gated(node, E, False).fold(), eqx.is_array)
        weights = jax.tree.map(lambda a, b: a + t * (b - a), base, there)
        return eqx.combine(weights, constant)(inputs[0] + t * moved, *inputs[1:])

    _, expected = jax.jvp(by_weights, (0.0,), (1.0,))
    close(change, expected)


def test_embedding(key):
    layer = eqx.nn.Embedding(6, 4, key=key)
    node = layers.SelfTuningEmbedding(layer, SIZE, key=key)
    node = eqx.tree_at(lambda n: n.gate, node, jax.random.normal(key, node.gate.shape))
    gated = gating.gated(node, E, False)
    index = jnp.array(2)
    close(node(index), layer(index))
    close(gated(index), gated.fold()(index))
    one_hot = jax.nn.one_hot(2, 6) @ (layer.weight + (node.gate @ E) * node.response)
    close(gated(index), one_hot)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "lstm", "layer norm"])
def test_squared_norm_is_that_of_the_folded_layer(kind, key):
    node, _ = build(kind, key)
    for layer in (node, gating.gated(node, E, False)):
        np.testing.assert_allclose(
            layers.squared_norm({"a": [layer]}), layers.squared_norm(layer.fold()), rtol=1e-12
        )
    folded = gating.gated(node, E, False).fold()
    named = [n for n in ("weight", "weight_ih", "weight_hh") if hasattr(folded, n)]
    expected = 0 if kind == "layer norm" else sum(jnp.sum(getattr(folded, n) ** 2) for n in named)
    np.testing.assert_allclose(layers.squared_norm(folded), expected, rtol=1e-12)


def test_array_gates_its_output_axis(key):
    for axis, shape in ((-1, (2, 3, 4)), (0, (4, 2, 3))):
        node = SelfTuningArray(jax.random.normal(key, shape), SIZE, axis, key=key)
        node = eqx.tree_at(lambda n: n.gate, node, jax.random.normal(key, (4, SIZE)))
        gated = gating.gated(node, E, False)
        rows = (-1, 1, 1) if axis == 0 else (1, 1, -1)
        expected = node.layer + (node.gate @ E).reshape(rows) * node.response
        np.testing.assert_allclose(gated.fold(), expected, rtol=1e-12)
        np.testing.assert_allclose(gated.squared_norm(), jnp.sum(expected**2), rtol=1e-12)
    bias = SelfTuningArray(jnp.arange(4.0), SIZE, -1, key=key)
    bias = eqx.tree_at(lambda n: n.gate, bias, node.gate)
    np.testing.assert_allclose(gating.gated(bias, E, False).fold(), jnp.arange(4.0) + node.gate @ E)


def test_examples_share_the_weights(key):
    """Per-example response inputs make no per-example copy of a weight matrix."""
    width, batch = 64, 32
    layer = layers.SelfTuningLinear(eqx.nn.Linear(width, width, key=key), SIZE, key=key)

    def outputs(layer, x, e):
        return jax.vmap(lambda x, e: gating.gated(layer, e, False)(x))(x, e)

    jaxpr = jax.make_jaxpr(lambda x, e: outputs(layer, x, e))(
        jnp.ones((batch, width)), jnp.ones((batch, SIZE))
    )
    largest = max(v.aval.size for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars)
    assert largest < batch * width * width
