"""An existing equinox model in self-tuning form, and back."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.expected import received, require_key
from hypergrad.self_tuning import gating, layers

_FORMS: dict[type, type] = {
    eqx.nn.Linear: layers.SelfTuningLinear,
    eqx.nn.Conv: layers.SelfTuningConv,
    eqx.nn.Conv1d: layers.SelfTuningConv,
    eqx.nn.Conv2d: layers.SelfTuningConv,
    eqx.nn.Conv3d: layers.SelfTuningConv,
    eqx.nn.Embedding: layers.SelfTuningEmbedding,
    eqx.nn.LayerNorm: layers.SelfTuningNorm,
    eqx.nn.RMSNorm: layers.SelfTuningNorm,
    eqx.nn.GroupNorm: layers.SelfTuningNorm,
    eqx.nn.LSTMCell: layers.SelfTuningLSTMCell,
}
# These hold layers or parameters in ways that a gate on an inner layer would not respect.
_OPAQUE = (
    eqx.nn.BatchNorm,
    eqx.nn.WeightNorm,
    eqx.nn.SpectralNorm,
    eqx.nn.Shared,
    eqx.nn.GRUCell,
    eqx.nn.ConvTranspose,
    eqx.nn.PReLU,
)


class SelfTuningModel(eqx.Module):
    """A model whose layers respond to hyperparameters; called as the model it was made from.

    - `model`: the same model with self-tuning layers.
    - `displacement`: the response input `e`; `None` for the base weights alone.
    - `linearised`: the output at `e` is `y(0) + (∂y/∂weights) ΔW(e)`, linear in the response (one
      Jacobian-vector product; Bae & Grosse 2020), and not `y(e)`.

    Made by `to_self_tuning`. Attributes of the model are reached by `.model`; a part of it that is
    called on its own must be taken from `.gated`.
    """

    model: PyTree
    displacement: Float[Array, " h"] | None = None
    linearised: bool = eqx.field(static=True, default=False)

    @property
    def size(self) -> int:
        """Number of entries of the response input."""
        nodes = jax.tree.leaves(self.model, is_leaf=gating.is_self_tuning)
        return next(node.gate.shape[1] for node in nodes if gating.is_self_tuning(node))

    def at(
        self, displacement: Float[Array, " h"] | None, *, linearised: bool = False
    ) -> "SelfTuningModel":
        """The model at another response input."""
        return SelfTuningModel(self.model, displacement, linearised)

    @property
    def gated(self) -> PyTree:
        """The model with its gates set; its output is not linearised."""
        return gating.gated(self.model, self.displacement, False)

    def fold(self) -> PyTree:
        """An ordinary equinox model, with the weights `W(e)` at the current response input."""
        return jax.tree.map(
            lambda node: node.fold() if gating.is_self_tuning(node) else node,
            self.gated,
            is_leaf=gating.is_self_tuning,
        )

    def squared_norm(self) -> Scalar:
        """`layers.squared_norm` at the current response input."""
        return layers.squared_norm(self.gated)

    def saturation(self, sigma: Float[Array, " h"]) -> Scalar:
        """The fraction of gates that exceed 1 at one standard deviation of the response input.

        Such a unit's response is as large as its weights: an affine response does not reach so far.
        """
        gates = [
            jnp.sqrt(jnp.square(node.gate) @ jnp.square(sigma).astype(node.gate.dtype)).ravel()
            for node in jax.tree.leaves(self.model, is_leaf=gating.is_self_tuning)
            if gating.is_self_tuning(node) and node.response is not None
        ]
        if not gates:
            return jnp.zeros(())
        return jnp.mean(jnp.concatenate(gates) > 1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model it was made from."""
        if self.displacement is None:
            return self.model(*args, **kwargs)
        if not self.linearised:
            return self.gated(*args, **kwargs)

        def output(displacement: Array) -> Any:
            return gating.gated(self.model, displacement, True)(*args, **kwargs)

        origin = jnp.zeros_like(self.displacement)
        value, change = eqx.filter_jvp(output, (origin,), (self.displacement,))
        return eqx.apply_updates(value, change)


def to_self_tuning(
    model: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    fixed: Sequence[str | type] = (),
) -> SelfTuningModel:
    """Give each layer of an equinox model a response to the hyperparameters.

    **Arguments:**

    - `model`: a callable pytree. Its `Linear`, `Conv`, `Embedding`, `LayerNorm`, `RMSNorm`,
      `GroupNorm` and `LSTMCell` layers are converted; what has no parameters is kept.
    - `hparams`: the hyperparameters; the response input has one entry for each number in its
      floating-point arrays. Python numbers are constants.
    - `key`: for the response weights.
    - `fixed`: what is left as it is, by path (`"layers/0"`, with all below it) or by type
      (`MyLayer`). Fixed layers are trained, and do not respond.

    **Returns:** a `SelfTuningModel`, whose output is that of `model` until the response is trained.

    Raises `ValueError` that names the layers that have no self-tuning form and are not in `fixed`;
    entries of `fixed` that match nothing; hyperparameters that are integers (a discrete
    hyperparameter needs a relaxation, see `Discrete`).
    """
    size = response_size(hparams)
    require_key("to_self_tuning", "key", key)
    if not isinstance(fixed, list | tuple | set | frozenset):
        raise ValueError(
            "to_self_tuning: fixed: expected a list of paths and types, received "
            f"{received(fixed)}."
        )
    types = tuple(entry for entry in fixed if isinstance(entry, type))
    paths = {entry for entry in fixed if isinstance(entry, str)}
    unused: set = set(fixed)
    unknown: list[str] = []

    def stop(node: Any) -> bool:
        return isinstance(node, (*_FORMS, *_OPAQUE, *types, eqx.nn.StateIndex))

    nodes, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=stop)
    new = []
    for index, (path, node) in enumerate(nodes):
        name = "/".join(_key(entry) for entry in path)
        matches: set = {p for p in paths if name == p or name.startswith(p + "/")}
        matches |= {kind for kind in types if isinstance(node, kind)}
        matches |= {kind for kind in types if isinstance(_owner(model, path), kind)}
        unused -= matches
        if matches or not _has_parameters(node):
            new.append(node)
        elif type(node) in _FORMS:
            form: Any = _FORMS[type(node)]
            new.append(form(node, size, key=jax.random.fold_in(key, index)))
        else:
            owner = _owner(model, path) if eqx.is_array(node) else node
            unknown.append(f"{name!r} ({type(owner).__name__})")
            new.append(node)
    if unknown:
        raise ValueError(
            f"No self-tuning form for {', '.join(unknown)}. Leave such layers fixed (trained, but "
            "not responding to the hyperparameters) by path or type: "
            f"to_self_tuning(..., fixed=[{unknown[0].split(' ')[0]}]). All other layers are "
            "expected to be equinox's."
        )
    if unused:
        raise ValueError(
            f"`fixed` has entries that match nothing in the model: {sorted(map(str, unused))}; "
            f"expected among {['/'.join(map(_key, path)) for path, _ in nodes]}."
        )
    if not any(map(gating.is_self_tuning, new)):
        raise ValueError(
            "The model has no layer that could respond to the hyperparameters: expected one of "
            f"equinox, such as Linear, received {received(model)}."
        )
    return SelfTuningModel(jax.tree.unflatten(structure, new))


def respond(
    params: PyTree, displacement: Float[Array, " h"] | None, *, linearised: bool = False
) -> PyTree:
    """`SelfTuningModel.at` for every self-tuning model in a pytree."""
    return jax.tree.map(
        lambda node: node.at(displacement, linearised=linearised) if _is_model(node) else node,
        params,
        is_leaf=_is_model,
    )


def response_size(hparams: PyTree) -> int:
    """Number of entries of the response input; `ValueError` where it cannot be continuous."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(hparams):
        name = "/".join(map(_key, path)) or "hparams"
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        if is_array and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"Hyperparameter {name!r} has dtype {leaf.dtype}: expected floating-point "
                "numbers; a discrete hyperparameter needs a continuous relaxation, for example "
                "hypergrad.self_tuning.Discrete(low, high)."
            )
        if eqx.is_inexact_array(leaf):
            total += np.size(leaf)
    if total == 0:
        raise ValueError(
            "`hparams` has no floating-point array to respond to: expected at least one, such as "
            f"jnp.zeros(2), received {received(hparams)}."
        )
    return total


def response_spec(model: PyTree) -> PyTree:
    """A pytree of booleans like `model`: true for the response weights `W'`, `b'` and `V`."""

    def mark(node: Any) -> Any:
        if not gating.is_self_tuning(node):
            return False

        def where(node: Any) -> Any:
            return (node.gate,) if node.response is None else (node.gate, node.response)

        spec = jax.tree.map(lambda _: False, node)
        return eqx.tree_at(where, spec, jax.tree.map(eqx.is_inexact_array, where(node)))

    return jax.tree.map(mark, model, is_leaf=gating.is_self_tuning)


def _is_model(node: Any) -> bool:
    return isinstance(node, SelfTuningModel)


def _has_parameters(node: Any) -> bool:
    return any(map(eqx.is_inexact_array, jax.tree.leaves(node)))


def _key(entry: Any) -> str:
    return jax.tree_util.keystr((entry,), simple=True)


def _owner(model: PyTree, path: Any) -> Any:
    """The innermost module that holds the leaf at `path`."""
    owner = node = model
    for entry in path[:-1]:
        if isinstance(entry, jax.tree_util.GetAttrKey):
            node = getattr(node, entry.name)
        elif isinstance(entry, jax.tree_util.SequenceKey):
            node = node[entry.idx]
        else:
            node = node[entry.key]
        owner = node if isinstance(node, eqx.Module) else owner
    return owner
