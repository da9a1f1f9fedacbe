"""Training again without single examples: what `Attribution.leave_one_out` foretells.

That is a derivative times a whole example. Each weight enters the solution with a curvature, which
is small where an example is one among many that say the same (in a linear model: where its leverage
is small), and large where a few parameters rest on a few examples: factors of a matrix, embeddings
of rare words. There the derivative is right, and leaving out does something else.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.data.attribution import Attribution
from hypergrad.data.frames import without_frames
from hypergrad.data.trained import QueryLoss, check_order, check_queries, over_weights
from hypergrad.data.weighted import WeightedExamples
from hypergrad.estimator import Estimator
from hypergrad.expected import require
from hypergrad.implicit.trains import check_trains
from hypergrad.problem import BilevelProblem


class LeftOut(eqx.Module):
    """What `leave_out` measured, for `m` queries and `k` examples.

    - `numbers`: of the examples that were left out, one at a time.
    - `losses`: of the queries, with all examples.
    - `changes`: of the losses, without each.
    """

    numbers: Int[np.ndarray, " k"]
    losses: Float[Array, " m"]
    changes: Float[Array, "m k"]

    def agreement(self, found: Attribution) -> float:
        """Correlation of `found.leave_one_out` with these changes, over queries and examples.

        Near 1, the predictions are good for the examples that were not tried, too. `nan` where the
        changes are all the same. Raises `ValueError` for an attribution of other queries.
        """
        require("agreement", "found", found, Attribution, "attribute(...)")
        queries, examples = found.scores.shape
        if queries != len(self.losses) or self.numbers.max() >= examples:
            raise ValueError(
                f"agreement: found: expected {len(self.losses)} queries and more than "
                f"{self.numbers.max()} examples, received scores of shape {found.scores.shape}."
            )
        predicted = np.asarray(found.leave_one_out[:, self.numbers], float).ravel()
        changes = np.asarray(self.changes, float).ravel()
        if np.ptp(predicted) == 0 or np.ptp(changes) == 0:
            return float("nan")
        return float(np.corrcoef(predicted, changes)[0, 1])


def leave_out(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    examples: PyTree,
    queries: PyTree,
    numbers: Any,
    *,
    estimator: Estimator,
    order: Any = None,
    key: Array | None = None,
) -> LeftOut:
    """Train again without each of a few examples; costs a training for each, and one.

    **Arguments:**

    - `problem`, `params`, `hparams`, `examples`, `queries`, `order`, `key`: as for `attribute`;
      `params` are where each training starts. Data frames are taken as arrays.
    - `numbers`: of the examples to leave out, one at a time.
    - `estimator`: it trains: `Unrolled(...)`, `ImplicitDifferentiation(solver)`.

    **Returns:** a `LeftOut`.

    **Raises:** `ValueError` for bad input.
    """
    check_call("leave_out", problem, key, params=params, hparams=hparams)
    check_trains(estimator, "it is trained without examples")
    examples, _ = without_frames("examples", examples)
    queries, _ = without_frames("queries", queries)
    params, hparams, examples, queries = as_arrays((params, hparams, examples, queries))
    weighted = WeightedExamples(problem, hparams, examples)
    # Checks the queries' axes, too.
    WeightedExamples(problem, hparams, queries)
    check_queries(weighted, params, queries, key)
    size = weighted.size
    chosen = _numbers(numbers, size)
    batches = jnp.arange(size) if order is None else check_order(order, size)
    weights = np.ones((len(chosen) + 1, size))
    weights[np.arange(len(chosen)), chosen] = 0
    # In the dtype of `attribute`'s weights.
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array)))
    rows = jnp.asarray(weights, dtype)
    losses = _trained(weighted, estimator, params, rows, batches, queries, key)
    return LeftOut(chosen, losses[-1], (losses[:-1] - losses[-1]).T)


@eqx.filter_jit
def _trained(
    weighted: WeightedExamples,
    estimator: Estimator,
    params: PyTree,
    rows: Array,
    batches: Array,
    queries: PyTree,
    key: Array | None,
) -> Array:
    problem, loss = over_weights(weighted), QueryLoss(weighted)
    arrays, rest = eqx.partition(queries, eqx.is_array)

    def losses(weights: Array) -> Array:
        state = estimator.init(problem, params, weights, batches, key=key)
        state, _ = estimator.fit(problem, state, weights, batches, key=key)

        def of(query: PyTree) -> Array:
            one = eqx.combine(jax.tree.map(lambda a: a[None], query), rest)
            return loss(state.params, weights, one, key)

        return jax.vmap(of)(arrays)

    return jax.lax.map(losses, rows)


def _numbers(numbers: Any, size: int) -> np.ndarray:
    chosen = np.asarray(numbers)
    row = np.issubdtype(chosen.dtype, np.integer) and chosen.ndim == 1 and chosen.size > 0
    if row and chosen.min() >= 0 and chosen.max() < size:
        return chosen
    given = (
        f"{chosen.min()} to {chosen.max()}" if row else f"{chosen.dtype} of shape {chosen.shape}"
    )
    raise ValueError(f"numbers: expected integers from 0 to {size - 1} in a row, received {given}.")
