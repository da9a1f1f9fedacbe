"""Losses over several mini-batches, one of them in memory at a time."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar


def over_batches(loss: Callable, *, has_aux: bool = False) -> Callable:
    """The mean of a loss over stacked mini-batches, computed one after the other.

    For losses over more data than fits at once: every derivative taken of the result, so the inner
    gradient, its linearisation and each Hessian-vector product of a solve, holds the intermediate
    values of one mini-batch only. Within a solve all products see the same mini-batches, so the
    operator stays fixed.

    **Arguments:**

    - `loss`: `loss(params, hparams, batch[, key]) -> scalar`, the mean over one mini-batch.
    - `has_aux`: `loss` returns `(scalar, aux)`.

    **Returns:** a loss to be given to `BilevelProblem`, of the same arguments. Its batch is the
    mini-batches stacked along a leading axis of one length; with `has_aux` the aux is stacked, too.
    A key is folded with the number of the mini-batch.

    !!! example

        ```python
        problem = BilevelProblem(over_batches(inner), over_batches(outer))
        ```
    """

    def mean(params: PyTree, hparams: PyTree, batches: PyTree, *key: Array) -> Any:
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(batches)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "over_batches: the leaves of the batch must share a leading axis of mini-batches; "
                f"their lengths are {sorted(lengths)}."
            )
        (count,) = lengths

        @eqx.filter_checkpoint
        def one(params: PyTree, hparams: PyTree, number: Array, batch: PyTree) -> Any:
            extra = tuple(jax.random.fold_in(k, number) for k in key)
            out = loss(params, hparams, batch, *extra)
            return out if has_aux else (out, None)

        def step(total: Scalar, numbered: tuple) -> tuple[Scalar, PyTree]:
            value, aux = one(params, hparams, *numbered)
            return total + value, aux

        numbers = jnp.arange(count)
        first = eqx.filter_eval_shape(one, params, hparams, numbers[0], _first(batches))[0]
        total, aux = jax.lax.scan(step, jnp.zeros(first.shape, first.dtype), (numbers, batches))
        return (total / count, aux) if has_aux else total / count

    return mean


def _first(batches: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], batches)
