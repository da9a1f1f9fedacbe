"""Cross-validation as one bilevel problem."""

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.expected import received, require
from hypergrad.problem import BilevelProblem


def cross_validated(problem: BilevelProblem, folds: Iterable[tuple[Any, Any]]) -> BilevelProblem:
    """The same hyperparameters for all folds, and parameters for each.

    The params of the new problem are those of the given one with a leading axis over the folds
    (`jax.tree.map(lambda a: jnp.stack([a] * k), params)`), and both its batches are all of the
    data, whose array leaves share their first axis. Its inner loss is the sum of the folds' inner
    losses, each on the rows that it trains on: its minimiser is that of every fold by itself. Its
    outer loss is the mean of the folds' outer losses, each on the rows held out and weighted by
    their number, so that every row counts the same in folds of unequal size.

    Folds of one size are one vectorised program.

    **Arguments:**

    - `problem`: the losses of one fold, each a mean over the rows of its batch.
    - `folds`: pairs `(training rows, validation rows)` of row numbers, as scikit-learn's
      `KFold(5).split(x)` gives them.

    A stochastic problem gets the key folded with the number of the fold; with `has_aux` the
    auxiliary output is a list over groups of folds of one size.

    **Raises:** `ValueError` for fewer than two folds, or one without rows.
    """
    require("cross_validated", "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    try:
        rows = [(np.asarray(train), np.asarray(held)) for train, held in folds]
    except (TypeError, ValueError):
        raise ValueError(
            "cross_validated: folds: expected pairs (training rows, validation rows), received "
            f"{received(folds)}."
        ) from None
    if len(rows) < 2:
        raise ValueError(f"cross_validated: expected at least two folds, received {len(rows)}.")
    for number, pair in enumerate(rows):
        for name, part in zip(("training", "validation"), pair, strict=True):
            if part.ndim != 1 or not part.size or not np.issubdtype(part.dtype, np.integer):
                raise ValueError(
                    f"cross_validated: fold {number}: expected {name} rows as an array of integers,"
                    f" received {part.dtype} of shape {part.shape}."
                )
    sizes = sorted({(train.size, held.size) for train, held in rows})
    groups = [
        [i for i, (train, held) in enumerate(rows) if (train.size, held.size) == size]
        for size in sizes
    ]
    held_out = np.array([held.size for _, held in rows], float)

    def over_folds(function: Callable, part: int) -> Callable:
        """`function` on the training (0) or validation (1) rows: its values by group."""

        def mapped(params: PyTree, hparams: PyTree, data: PyTree, *key: Array) -> list[PyTree]:
            dynamic, static = eqx.partition(params, eqx.is_inexact_array)
            _check_stack(dynamic, len(rows))

            def one(own: PyTree, chosen: Array, number: Array) -> PyTree:
                batch = jax.tree.map(lambda x: x[chosen] if eqx.is_array(x) else x, data)
                extra = tuple(jax.random.fold_in(k, number) for k in key)
                return function(eqx.combine(own, static), hparams, batch, *extra)

            return [
                jax.vmap(one)(
                    jax.tree.map(itemgetter(np.array(group)), dynamic),
                    jnp.asarray(np.stack([rows[i][part] for i in group])),
                    jnp.asarray(group),
                )
                for group in groups
            ]

        return mapped

    def weighted(function: Callable, part: int, weights: np.ndarray) -> Callable:
        mapped = over_folds(function, part)

        def loss(params: PyTree, hparams: PyTree, data: PyTree, *key: Array) -> Any:
            out = mapped(params, hparams, data, *key)
            losses = [one[0] if problem.has_aux else one for one in out]
            total = sum(
                jnp.sum(jnp.asarray(weights[group], values.dtype) * values)
                for group, values in zip(groups, losses, strict=True)
            )
            return (total, [one[1] for one in out]) if problem.has_aux else total

        return loss

    def stationary(params: PyTree, hparams: PyTree, data: PyTree, *key: Array) -> PyTree:
        assert problem.optimality is not None
        out = over_folds(problem.optimality, 0)(params, hparams, data, *key)
        order = np.argsort(np.concatenate(groups))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[order], *out)

    ones = np.ones(len(rows))
    return BilevelProblem(
        None if problem.inner is None else weighted(problem.inner, 0, ones),
        weighted(problem.outer, 1, held_out / held_out.sum()),
        None if problem.optimality is None else stationary,
        has_aux=problem.has_aux,
        stochastic=problem.stochastic,
        biased=problem.biased,
    )


def _check_stack(params: PyTree, folds: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not leaf.ndim or leaf.shape[0] != folds:
            raise ValueError(
                f"cross_validated: params{jax.tree_util.keystr(path)}: expected a leading axis of "
                f"{folds} folds, received shape {leaf.shape}; stack them with "
                f"jax.tree.map(lambda a: jnp.stack([a] * {folds}), params)."
            )
