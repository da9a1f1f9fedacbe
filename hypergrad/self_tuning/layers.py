"""Layers whose weights are an affine function of a response input.

A dense layer with weights `W, b` becomes

    y = W x + b + s_w(e) ⊙ (W' x) + s_b(e) ⊙ b',        [s_w(e); s_b(e)] = V e,

which is the layer with weights `W + diag(V_w e) W'` and `b + (V_b e) ⊙ b'`: a best response that is
affine in the response input `e` and shares one matrix `W'` among all hyperparameters. Because `e`
enters by gating the outputs, every example of a batch can have its own `e` at no copy of the
weights. MacKay et al., "Self-Tuning Networks" (2019), equations 9 to 13; convolutions are gated
by output channel, embeddings as dense layers on one-hot rows, an LSTM cell by its pre-activations,
and the element-wise weights of a normalisation directly: `γ(e) = γ + V_γ e`.

A layer called without a response input (`gates=None`) is the ordinary layer.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import received, require, require_count, require_key
from hypergrad.self_tuning.gating import SelfTuningLayer, gated_norm, scale


class _OutputGated(SelfTuningLayer):
    """A dense or convolutional layer. `response` is the pair of a layer without bias and `b'`."""

    def __init__(self, layer: Any, size: int, response: Any, *, key: Array):
        bias = layer.bias
        if bias is not None:
            limit = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
            bias = jax.random.uniform(key, bias.shape, bias.dtype, -limit, limit)
        self.layer = layer
        self.response = (response, bias)
        rows = layer.weight.shape[0] * (1 if bias is None else 2)
        self.gate = jnp.zeros((rows, size), layer.weight.dtype)
        self.gates, self.linearised = None, False

    @property
    def weight(self) -> Array:
        """The base weights `W`."""
        return self.layer.weight

    @property
    def bias(self) -> Array | None:
        """The base bias `b`."""
        return self.layer.bias

    @property
    def parts(self) -> tuple[int, ...]:
        """Gates of the outputs, and of the bias if there is one."""
        return (self.weight.shape[0],) * (1 if self.response[1] is None else 2)

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """As the wrapped layer."""
        if self.gates is None:
            return self.layer(x)
        response, bias = self.response
        by_weight, *by_bias = self.gates
        value = self._apply(self.layer, x)
        # One gate for each output, the same everywhere in space. (A dense layer may have a scalar
        # output, with no axis at all.)
        shape = value.shape[:1] + (1,) * (value.ndim - 1)
        change = self._apply(response, x)
        value = value + scale(by_weight.reshape(shape), change, self.linearised)
        if bias is not None:
            gates = by_bias[0].reshape(shape)
            value = value + scale(gates, bias.reshape(shape), self.linearised)
        return value

    def _apply(self, layer: Any, x: Array) -> Array:
        return layer(x)

    def fold(self) -> Any:
        """The ordinary layer with the weights `W(e)` of the current gates."""
        if self.gates is None:
            return self.layer
        response, bias = self.response
        by_weight, *by_bias = self.gates
        rows = by_weight.reshape((-1,) + (1,) * (self.weight.ndim - 1))
        weight = self.weight + rows * response.weight
        folded = eqx.tree_at(lambda m: m.weight, self.layer, weight)
        if bias is None:
            return folded
        shifted = self.bias + by_bias[0].reshape(bias.shape) * bias
        return eqx.tree_at(lambda m: m.bias, folded, shifted)

    def squared_norm(self) -> Scalar:
        """`‖W(e)‖²` without the bias."""
        gates = None if self.gates is None else self.gates[0]
        return gated_norm(self.weight, self.response[0].weight, gates)


class SelfTuningLinear(_OutputGated):
    """A dense layer, gated by output unit. Called as `equinox.nn.Linear`.

    **Arguments:**

    - `layer`: the `equinox.nn.Linear` with the base weights.
    - `size`: number of entries of the response input.
    - `key`: for `W'` and `b'`, initialised as those of a new layer.
    """

    def __init__(self, layer: eqx.nn.Linear, size: int, *, key: Array):
        _check("SelfTuningLinear", layer, eqx.nn.Linear, "Linear(2, 3, key=key)", size, key)
        weight_key, bias_key = jax.random.split(key)
        response = eqx.nn.Linear(
            layer.in_features,
            layer.out_features,
            use_bias=False,
            dtype=layer.weight.dtype,
            key=weight_key,
        )
        super().__init__(layer, size, response, key=bias_key)

    def _apply(self, layer: Any, x: Array) -> Array:
        # `x Wᵀ` and not `W x`, whose batches come out transposed, to be copied before each gating.
        x = jnp.broadcast_to(x, (1,)) if layer.in_features == "scalar" else x
        value = x @ layer.weight.T
        value = value if layer.bias is None else value + layer.bias
        return value.reshape(()) if layer.out_features == "scalar" else value


class SelfTuningConv(_OutputGated):
    """A convolution of any dimension, gated by output channel. Called as `equinox.nn.Conv`.

    **Arguments:** as `SelfTuningLinear`, with `layer` an `equinox.nn.Conv`.
    """

    def __init__(self, layer: eqx.nn.Conv, size: int, *, key: Array):
        _check("SelfTuningConv", layer, eqx.nn.Conv, "Conv2d(1, 2, 3, key=key)", size, key)
        weight_key, bias_key = jax.random.split(key)
        response = eqx.nn.Conv(
            layer.num_spatial_dims,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            use_bias=False,
            padding_mode=layer.padding_mode,
            dtype=layer.weight.dtype,
            key=weight_key,
        )
        super().__init__(layer, size, response, key=bias_key)


class SelfTuningEmbedding(SelfTuningLayer):
    """An embedding, gated by its dimensions as a dense layer on one-hot rows.

    **Arguments:** as `SelfTuningLinear`, with `layer` an `equinox.nn.Embedding`. `W'` starts at the
    scale of the given embedding.
    """

    def __init__(self, layer: eqx.nn.Embedding, size: int, *, key: Array):
        _check(
            "SelfTuningEmbedding", layer, eqx.nn.Embedding, "Embedding(9, 2, key=key)", size, key
        )
        self.layer = layer
        scale = jnp.sqrt(jnp.mean(jnp.square(layer.weight)))
        self.response = scale * jax.random.normal(key, layer.weight.shape, layer.weight.dtype)
        self.gate = jnp.zeros((layer.weight.shape[1], size), layer.weight.dtype)
        self.gates, self.linearised = None, False

    @property
    def weight(self) -> Array:
        """The base weights `W`."""
        return self.layer.weight

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """As `equinox.nn.Embedding`."""
        value = self.layer(x)
        if self.gates is None:
            return value
        return value + scale(self.gates[0], self.response[x], self.linearised)

    def fold(self) -> eqx.nn.Embedding:
        """The ordinary layer with the weights `W(e)` of the current gates."""
        if self.gates is None:
            return self.layer
        weight = self.layer.weight + self.gates[0] * self.response
        return eqx.tree_at(lambda m: m.weight, self.layer, weight)

    def squared_norm(self) -> Scalar:
        """`‖W(e)‖²`."""
        gates = None if self.gates is None else self.gates[0]
        return gated_norm(self.layer.weight.T, self.response.T, gates)


class SelfTuningNorm(SelfTuningLayer):
    """A `LayerNorm`, `RMSNorm` or `GroupNorm` of equinox, whose scale and shift respond affinely.

    **Arguments:** as `SelfTuningLinear`, with `layer` one of the three. There is no `W'`: the
    weights are element-wise, and `V` alone makes any affine response.
    """

    def __init__(self, layer: Any, size: int, *, key: Array | None = None):
        if not isinstance(layer, eqx.nn.LayerNorm | eqx.nn.RMSNorm | eqx.nn.GroupNorm):
            raise ValueError(
                "SelfTuningNorm: 'layer': expected a LayerNorm, RMSNorm or GroupNorm of equinox, "
                f"received {received(layer)}."
            )
        require_count("SelfTuningNorm", "size", size)
        self.layer = layer
        self.response = None
        leaves = jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array))
        dtype = jnp.result_type(*leaves) if leaves else jnp.float32
        self.gate = jnp.zeros((sum(leaf.size for leaf in leaves), size), dtype)
        self.gates, self.linearised = None, False

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        """As the wrapped layer."""
        return self.fold()(x, *args, **kwargs)

    def fold(self) -> Any:
        """The ordinary layer with the weights `W(e)` of the current gates."""
        if self.gates is None:
            return self.layer
        weights, rest = eqx.partition(self.layer, eqx.is_inexact_array)
        _, unravel = jax.flatten_util.ravel_pytree(weights)
        shift = unravel(scale(self.gates[0], jnp.ones_like(self.gates[0]), self.linearised))
        return eqx.combine(jax.tree.map(jnp.add, weights, shift), rest)

    def squared_norm(self) -> Scalar:
        """Zero: scales and shifts of a normalisation are not penalised."""
        return jnp.zeros((), self.gate.dtype)


class SelfTuningLSTMCell(SelfTuningLayer):
    """An LSTM cell, gated by pre-activation, input and hidden weights apart.

    **Arguments:** as `SelfTuningLinear`, with `layer` an `equinox.nn.LSTMCell`.
    """

    def __init__(self, layer: eqx.nn.LSTMCell, size: int, *, key: Array):
        _check("SelfTuningLSTMCell", layer, eqx.nn.LSTMCell, "LSTMCell(2, 3, key=key)", size, key)
        self.layer = layer
        self.response = eqx.nn.LSTMCell(
            layer.input_size,
            layer.hidden_size,
            use_bias=layer.use_bias,
            dtype=layer.weight_ih.dtype,
            key=key,
        )
        rows = layer.weight_ih.shape[0] * (3 if layer.use_bias else 2)
        self.gate = jnp.zeros((rows, size), layer.weight_ih.dtype)
        self.gates, self.linearised = None, False

    @property
    def parts(self) -> tuple[int, ...]:
        """Gates of the input weights, the hidden weights, and the bias if there is one."""
        return (self.layer.weight_ih.shape[0],) * (3 if self.layer.use_bias else 2)

    @property
    def hidden_size(self) -> int:
        """Length of the hidden state."""
        return self.layer.hidden_size

    def __call__(
        self, input: Array, hidden: tuple[Array, Array], *, key: Array | None = None
    ) -> tuple[Array, Array]:
        """As `equinox.nn.LSTMCell`."""
        if self.gates is None:
            return self.layer(input, hidden)
        h, c = hidden
        base, response = self.layer, self.response
        by_input, by_hidden, *by_bias = self.gates
        total = base.weight_ih @ input + base.weight_hh @ h
        total += scale(by_input, response.weight_ih @ input, self.linearised)
        total += scale(by_hidden, response.weight_hh @ h, self.linearised)
        if base.use_bias:
            total += base.bias + scale(by_bias[0], response.bias, self.linearised)
        i, f, g, o = jnp.split(total, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def fold(self) -> eqx.nn.LSTMCell:
        """The ordinary layer with the weights `W(e)` of the current gates."""
        if self.gates is None:
            return self.layer
        base, response = self.layer, self.response
        by_input, by_hidden, *by_bias = self.gates
        folded = eqx.tree_at(
            lambda m: (m.weight_ih, m.weight_hh),
            base,
            (
                base.weight_ih + by_input[:, None] * response.weight_ih,
                base.weight_hh + by_hidden[:, None] * response.weight_hh,
            ),
        )
        if base.use_bias:
            bias = base.bias + by_bias[0] * response.bias
            folded = eqx.tree_at(lambda m: m.bias, folded, bias)
        return folded

    def squared_norm(self) -> Scalar:
        """`‖W(e)‖²` of the input and the hidden weights."""
        gates = (None, None) if self.gates is None else self.gates
        by_input = gated_norm(self.layer.weight_ih, self.response.weight_ih, gates[0])
        return by_input + gated_norm(self.layer.weight_hh, self.response.weight_hh, gates[1])


def _check(owner: str, layer: Any, kind: type, example: str, size: Any, key: Any) -> None:
    require(owner, "layer", layer, kind, f"equinox.nn.{example}")
    require_count(owner, "size", size)
    require_key(owner, "key", key)


def squared_norm(model: PyTree) -> Scalar:
    """`Σ ‖W(e)‖²` over the weight matrices and kernels of a model, the usual L2 penalty.

    Counts `Linear`, `Conv`, `Embedding` and `LSTMCell` layers, ordinary or self-tuning (at their
    current response input), and leaves out biases and normalisations. Under `vmap` over response
    inputs its cost for each is one number a row of the weights, not one a weight.

    **Arguments:** `model`: any pytree that holds layers, a single layer as well.
    """
    kinds = (SelfTuningLayer, eqx.nn.Linear, eqx.nn.Conv, eqx.nn.Embedding, eqx.nn.LSTMCell)
    total = jnp.zeros(())
    for node in jax.tree.leaves(model, is_leaf=lambda n: isinstance(n, kinds)):
        match node:
            case SelfTuningLayer():
                total = total + node.squared_norm()
            case eqx.nn.LSTMCell():
                total = total + jnp.sum(node.weight_ih**2) + jnp.sum(node.weight_hh**2)
            case eqx.nn.Linear() | eqx.nn.Conv() | eqx.nn.Embedding():
                total = total + jnp.sum(node.weight**2)
    return total
