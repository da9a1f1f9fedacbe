"""Weights that are an affine function of a response input, by gates on outputs; see `layers`."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar


class SelfTuningLayer(eqx.Module):
    """What the self-tuning layers have in common.

    - `layer`: the ordinary equinox layer, holding `W` and `b`.
    - `response`: `W'` and `b'`; empty if there is none.
    - `gate`: the matrix `V`, one row for each gate, one column for each entry of `e`. Starts at
      zero.
    - `gates`: `V e` in its parts (see `parts`), or `None` for the ordinary layer. Set by `gated`.
    - `linearised`: gates are zero and differentiated as there, see `gated`.
    """

    layer: Any
    response: Any
    gate: Float[Array, "gates h"]
    gates: tuple[Array, ...] | None
    linearised: bool = eqx.field(static=True)

    @property
    def parts(self) -> tuple[int, ...]:
        """Numbers of rows of `V` for each array of weights that has its own gates."""
        return (self.gate.shape[0],)

    @abstractmethod
    def fold(self) -> Any:
        """The ordinary layer with the weights `W(e)` of the current gates."""

    @abstractmethod
    def squared_norm(self) -> Scalar:
        """`‖W(e)‖²` without biases, from row sums: `W(e)` itself is not formed."""


def is_self_tuning(node: Any) -> bool:
    """Whether `node` is a self-tuning layer (a leaf predicate for `jax.tree` functions)."""
    return isinstance(node, SelfTuningLayer)


def gated(model: PyTree, displacement: Float[Array, " h"] | None, linearised: bool) -> PyTree:
    """The model with the gates `V e` set in each of its self-tuning layers.

    **Arguments:**

    - `model`: any pytree with self-tuning layers.
    - `displacement`: the response input `e`; `None` for ordinary layers.
    - `linearised`: for a derivative at `e = 0` only. A gated output `s ⊙ a'` is taken as zero with
      the derivative `ds ⊙ a'`, which is exact at `s = 0` and saves the work of computing `s ⊙ a'`
      and `s ⊙ da'`, and of differentiating them once more.
    """

    def gate(node: Any) -> Any:
        if not is_self_tuning(node):
            return node
        if displacement is None:
            return _with(node, None, linearised)
        e = displacement.astype(node.gate.dtype)
        # In parts: under `vmap` the rows of `V` are cheaper to cut than the gates of a batch.
        rows = jnp.split(node.gate, np.cumsum(node.parts)[:-1])
        return _with(node, tuple(e @ part.T for part in rows), linearised)

    return jax.tree.map(gate, model, is_leaf=is_self_tuning)


def _with(
    layer: SelfTuningLayer, gates: tuple[Array, ...] | None, linearised: bool
) -> SelfTuningLayer:
    """A copy with two fields replaced that `tree_at` cannot replace: one `None`, one static."""
    new = object.__new__(type(layer))
    for name in layer.__dataclass_fields__:
        object.__setattr__(new, name, getattr(layer, name))
    object.__setattr__(new, "gates", gates)
    object.__setattr__(new, "linearised", linearised)
    return new


@jax.custom_jvp
def _scale_at_zero(gates: Array, values: Array) -> Array:
    # Zeros that depend on both: constant ones would not be batched where their derivative is, which
    # a scan under `vmap` cannot follow.
    return 0 * gates * values


@_scale_at_zero.defjvp
def _scale_at_zero_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    gates, values = primals
    # At zero response these zeros do not change with anything, so that a reverse pass need not
    # go back through the output that they are added to.
    return jax.lax.stop_gradient(_scale_at_zero(gates, values)), tangents[0] * values


def scale(gates: Array, values: Array, linearised: bool) -> Array:
    """`s ⊙ a'`, or (`linearised`) zero with the derivative `ds ⊙ a'`."""
    return _scale_at_zero(gates, values) if linearised else gates * values


def gated_norm(weight: Array, response: Array, gates: Array | None) -> Scalar:
    """`‖W + diag(s) W'‖²` with `s` the gates, from three sums over each row."""
    if gates is None:
        return jnp.sum(weight**2)
    axes = tuple(range(1, weight.ndim))
    cross = jnp.sum(weight * response, axis=axes)
    square = jnp.sum(response**2, axis=axes)
    return jnp.sum(weight**2) + jnp.sum(gates * (2 * cross + gates * square))
