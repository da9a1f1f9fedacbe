"""The network that answers with parameters."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class ResponseNetwork(eqx.Module):
    """`w_φ(z) = offset + Σ_k basis_k trunk_k(z)`, with `z` the normalised hyperparameters.

    - `trunk`: weights and biases of the layers before the output; empty for a linear network.
    - `activations`: one for each layer of the trunk.
    - `basis`: a pytree like the parameters, each leaf with a leading axis of features.
    - `offset`: a pytree like the parameters.
    """

    trunk: list[tuple[Array, Array]]
    activations: tuple[Callable | None, ...] = eqx.field(static=True)
    basis: PyTree
    offset: PyTree

    def features(self, z: Float[Array, " h"]) -> Float[Array, " k"]:
        """The output of the trunk."""
        for (weight, bias), activation in zip(self.trunk, self.activations, strict=True):
            z = weight @ z + bias
            z = z if activation is None else activation(z)
        return z

    def change(self, features: Float[Array, " k"]) -> PyTree:
        """The part of the output that is linear in the features."""
        return jax.tree.map(
            lambda b: jnp.tensordot(features.astype(b.dtype), b, axes=1), self.basis
        )

    def __call__(self, z: Float[Array, " h"]) -> PyTree:
        """The response at the normalised hyperparameters `z`."""
        return jax.tree.map(jnp.add, self.offset, self.change(self.features(z)))

    def shifted(self, z: Float[Array, " h"]) -> "ResponseNetwork":
        """The network whose answer at an input `x` is that of this one at `z + x`."""
        if self.activations and self.activations[0] is not None:
            (weight, bias), *rest = self.trunk
            return eqx.tree_at(lambda n: n.trunk, self, [(weight, bias + weight @ z), *rest])
        # A linear one: its offset is then the answer at `z` itself.
        moved = self.change(self.features(z) - self.features(jnp.zeros_like(z)))
        return eqx.tree_at(lambda n: n.offset, self, jax.tree.map(jnp.add, self.offset, moved))


def untrained(
    key: Array,
    inputs: Float[Array, " h"],
    params: PyTree,
    hidden: tuple[int, ...],
    bottleneck: int | None,
    activation: Callable,
) -> ResponseNetwork:
    """A network for inputs like `inputs`, which answers with `params` everywhere."""
    trunk = []
    features = inputs.size
    for index, width in enumerate(widths(hidden, bottleneck)):
        key, weight_key, bias_key = jax.random.split(key, 3)
        weight = jax.random.normal(weight_key, (width, features), inputs.dtype)
        # Hidden units need different biases, or tanh of a scalar is odd in all of them.
        bias = jax.random.normal(bias_key, (width,), inputs.dtype)
        trunk.append((weight / math.sqrt(features), bias * (index < len(hidden))))
        features = width
    offset = eqx.filter(params, eqx.is_inexact_array)
    return ResponseNetwork(
        trunk=trunk,
        activations=(activation,) * len(hidden) + (None,) * (bottleneck is not None),
        basis=jax.tree.map(lambda w: jnp.zeros((features, *w.shape), w.dtype), offset),
        offset=jax.tree.map(jnp.asarray, offset),
    )


def widths(hidden: tuple[int, ...], bottleneck: int | None) -> tuple[int, ...]:
    """Widths of the layers before the output."""
    return hidden if bottleneck is None else (*hidden, bottleneck)
