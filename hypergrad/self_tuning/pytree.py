"""The self-tuning form of a plain function of a pytree of weights (a Flax model, your own code).

Such a function cannot be looked into, so its weights are replaced from outside: each array with two
or more axes becomes `W + diag(V_w e) W'`, gated along its output axis, and each vector (bias, scale
of a normalisation) becomes `b + V_b e`. It is the same response as that of the layers, but the
weights are formed once for each perturbation: use few `groups` in `SelfTuning` where memory counts.
"""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import received, require_function, require_key
from hypergrad.self_tuning import gating
from hypergrad.self_tuning.convert import SelfTuningModel, response_size


class SelfTuningArray(gating.SelfTuningLayer):
    """One array of weights that responds; `fold` gives the array at the current gates."""

    axis: int = eqx.field(static=True)

    def __init__(self, array: Array, size: int, axis: int, *, key: Array):
        self.layer = array
        self.axis = axis
        if array.ndim < 2:
            self.response = None
            rows = array.size
        else:
            scale = jnp.sqrt(array.shape[axis] / array.size).astype(array.dtype)
            self.response = scale * jax.random.normal(key, array.shape, array.dtype)
            rows = array.shape[axis]
        self.gate = jnp.zeros((rows, size), array.dtype)
        self.gates, self.linearised = None, False

    def fold(self) -> Array:
        """The weights `W(e)` of the current gates."""
        if self.gates is None:
            return self.layer
        if self.response is None:
            shape, response = list(self.layer.shape), jnp.ones_like(self.layer)
        else:
            shape, response = [1] * self.layer.ndim, self.response
            shape[self.axis] = -1
        gates = self.gates[0].reshape(shape)
        return self.layer + gating.scale(gates, response, self.linearised)

    def squared_norm(self) -> Scalar:
        """`‖W(e)‖²` of a matrix or kernel; zero for a vector."""
        if self.response is None:
            return jnp.zeros((), self.gate.dtype)
        weight = jnp.moveaxis(self.layer, self.axis, 0)
        response = jnp.moveaxis(self.response, self.axis, 0)
        return gating.gated_norm(weight, response, None if self.gates is None else self.gates[0])


class PytreeModel(eqx.Module):
    """`function` with its weights bound: `model(*args)` is `function(params, *args)`."""

    function: Callable = eqx.field(static=True)
    params: PyTree

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function at the current weights."""
        params = jax.tree.map(
            lambda node: node.fold() if gating.is_self_tuning(node) else node,
            self.params,
            is_leaf=gating.is_self_tuning,
        )
        return self.function(params, *args, **kwargs)


def function_to_self_tuning(
    function: Callable,
    params: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    output_axis: int = -1,
    fixed: Callable[[str], bool] = lambda path: False,
) -> SelfTuningModel:
    """Give the weights of a plain function a response to the hyperparameters.

    **Arguments:**

    - `function`: `function(params, *args) -> output`, e.g. the `apply` of a Flax module.
    - `params`: its weights, any pytree of arrays.
    - `hparams`: the hyperparameters, as in `to_self_tuning`.
    - `key`: for the response weights.
    - `output_axis`: the axis of output units or channels in arrays with two or more axes. The
      default, -1, is that of Flax kernels; use 0 for `(out, in, ...)`.
    - `fixed`: `fixed(path)` is true for arrays that do not respond; paths are such as
      `"Dense_0/kernel"`.

    **Returns:** a `SelfTuningModel` called as `model(*args)`; `model.fold().params` are the weights
    at the current response input.

    Raises `ValueError` when every array is fixed, or an array lacks the output axis.
    """
    require_function("function_to_self_tuning", "function", function)
    require_key("function_to_self_tuning", "key", key)
    require_function("function_to_self_tuning", "fixed", fixed)
    if isinstance(output_axis, bool) or not isinstance(output_axis, Integral):
        raise ValueError(
            "function_to_self_tuning: output_axis: expected an integer, received "
            f"{received(output_axis)}."
        )
    size = response_size(hparams)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    new = []
    for index, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not eqx.is_inexact_array(leaf) or fixed(name):
            new.append(leaf)
            continue
        if leaf.ndim >= 2 and not -leaf.ndim <= output_axis < leaf.ndim:
            raise ValueError(
                f"{name!r} has shape {leaf.shape}: expected one with output_axis={output_axis}."
            )
        node = SelfTuningArray(leaf, size, output_axis, key=jax.random.fold_in(key, index))
        new.append(node)
    if not any(map(gating.is_self_tuning, new)):
        raise ValueError(
            "No array of `params` is left to respond to the hyperparameters: expected one that is "
            "floating-point and not fixed."
        )
    return SelfTuningModel(PytreeModel(function, jax.tree.unflatten(structure, new)))
