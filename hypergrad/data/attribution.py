"""What each training example does to each query's loss, by derivatives in the examples' weights.

At the solution `w(p)` of the training with weights `p` (`WeightedExamples`), by the implicit
function theorem, with `H` the Hessian of the training objective and `n` examples,

    dq/dp_i = − ⟨v, ∇f_i(w) − ∇f(w)⟩ / n,    H v = ∇q(w)

(influence functions: Koh & Liang 2017). One adjoint `v` serves all examples: the products
`⟨v, ∇f_i⟩` are derivatives of the examples' losses along `v`, in forward mode, and no gradient of a
single example is ever formed. With an unrolled estimator the derivative is that of the training
that was run (Ilyas & Engstrom 2025, *MAGIC*).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.data.frames import to_frame, without_frames
from hypergrad.data.trained import check_count, check_order, check_queries, over_weights
from hypergrad.data.weighted import WeightedExamples
from hypergrad.estimator import Estimator, HypergradientInfo
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.mistakes import check_estimator
from hypergrad.over_keys import of_expectation
from hypergrad.problem import BilevelProblem

# Of the mean of the examples' losses from the loss of the whole batch, relative, in roundings.
_MEAN_TOLERANCE = 1e4


class Attribution(eqx.Module):
    """What `attribute` found, for `m` queries and `n` training examples.

    - `scores`: `dq/dp_i`, the derivative of each query's loss in each example's weight; weights are
      1 in the training. Positive: the example raises this query's loss.
    - `losses`: of the queries.
    - `info`: the estimator's account for each query, every field of shape `(m,)`. `info.error` is
      the estimated error of a query's row of scores, relative to the row's norm.
    - `index`, `query_index`: of the rows, if examples or queries were data frames.
    """

    scores: Float[Array, "m n"]
    losses: Float[Array, " m"]
    info: HypergradientInfo
    index: Any = None
    query_index: Any = None

    @property
    def leave_one_out(self) -> Float[Array, "m n"]:
        """First-order prediction of how each query's loss changes without each example.

        Without example `i` the objective is `f − (f_i − f) / (n − 1)`, to which this is exact in
        first order.
        """
        count = self.scores.shape[1]
        return -self.scores * (count / (count - 1))

    def select(self, k: int) -> Int[Array, " k"]:
        """Numbers of the `k` examples whose weight lowers the mean query loss most, best first."""
        k = check_count("k", k, self.scores.shape[1])
        return jnp.argsort(jnp.mean(self.scores, axis=0))[:k]

    def frame(self, query: int | None = None) -> Any:
        """A pandas data frame with a row an example: `score`, `leave_one_out`; most harmful first.

        Of one query, by its number, or the means over all of them. Raises `ImportError` without
        pandas, `ValueError` for a query that there is not.
        """
        count = self.scores.shape[0]
        if query is not None and (isinstance(query, bool) or query not in range(count)):
            raise ValueError(f"query: expected a number from 0 to {count - 1}, received {query!r}.")

        def of(values: Array) -> Array:
            return jnp.mean(values, axis=0) if query is None else values[query]

        columns = {"score": of(self.scores), "leave_one_out": of(self.leave_one_out)}
        return to_frame(columns, self.index).sort_values("score", ascending=False, kind="stable")


def attribute(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    examples: PyTree,
    queries: PyTree,
    *,
    estimator: Estimator | None = None,
    order: Any = None,
    chunk: int = 1,
    key: Array | None = None,
) -> Attribution:
    """How much each training example changes each query's loss.

    **Arguments:**

    - `problem`: its inner loss is a mean over the examples of a batch (plus penalties), its outer
      loss is what a query is judged by.
    - `params`: the trained parameters; for unrolled estimators where the training starts.
    - `hparams`: the hyperparameters, held fixed.
    - `examples`: an inner batch with all training examples, `n` along the leading axis. Data
      frames are taken as arrays.
    - `queries`: an outer batch with all queries, `m` along the leading axis; each is judged alone.
    - `estimator`: by default `ImplicitDifferentiation()`. Any other will do: with `Unrolled` it is
      the attribution through the whole training.
    - `order`: for estimators with `stacked=True`: the numbers of the examples that each step took,
      shape `(steps, batch)`. By default every step takes all.
    - `chunk`: queries handled at a time. More need more memory, and share an unrolled run.
    - `key`: for stochastic problems.

    **Returns:** an `Attribution`.

    **Raises:** `ValueError` for arrays without a common leading axis, an inner loss that is no mean
    over examples, an order that is no array of such numbers, and as `hypergradient`.
    """
    check_call("attribute", problem, key, params=params, hparams=hparams)
    estimator = ImplicitDifferentiation() if estimator is None else estimator
    check_estimator(estimator)
    examples, index = without_frames("examples", examples)
    queries, query_index = without_frames("queries", queries)
    params, hparams, examples, queries = as_arrays((params, hparams, examples, queries))
    weighted = WeightedExamples(problem, hparams, examples)
    # Checks the queries' axes, too.
    count = WeightedExamples(problem, hparams, queries).size
    check_queries(weighted, params, queries, key)
    everyone = jnp.arange(weighted.size)
    _require_mean(weighted, params, everyone, key)
    numbers = everyone if order is None else check_order(order, weighted.size)
    chunk = min(check_count("chunk", chunk), count)
    losses, scores, info = _attributed(weighted, estimator, params, numbers, queries, chunk, key)
    return Attribution(scores, losses, info, index, query_index)


@eqx.filter_jit
def _attributed(
    weighted: WeightedExamples,
    estimator: Estimator,
    params: PyTree,
    numbers: Array,
    queries: PyTree,
    chunk: int,
    key: Array | None,
) -> tuple[Array, Array, HypergradientInfo]:
    dtype = jnp.result_type(jnp.float32, *_floating(params))
    weights = jnp.ones(weighted.size, dtype)

    problem = over_weights(weighted)
    state = estimator.init(problem, params, weights, numbers, key=key)
    state, _ = estimator.fit(problem, state, weights, numbers, key=key)
    arrays, rest = eqx.partition(queries, eqx.is_array)

    def of(query: PyTree) -> tuple[Array, Array, HypergradientInfo]:
        one = eqx.combine(jax.tree.map(lambda a: a[None], query), rest)
        out = estimator.hypergradient(problem, state, weights, numbers, one, key=key)
        return out.value, out.grad, of_expectation(problem, estimator, out.info)

    return jax.lax.map(of, arrays, batch_size=chunk)


def _require_mean(
    weighted: WeightedExamples, params: PyTree, everyone: Array, key: Array | None
) -> None:
    problem = weighted.problem
    if problem.stochastic:
        # Each example has a key of its own, so that the two differ.
        return
    together = problem.inner_loss(params, weighted.hparams, weighted.examples, key)[0]
    alone = jnp.mean(weighted.losses(params, everyone, key))
    allowed = _MEAN_TOLERANCE * jnp.finfo(together.dtype).eps
    if not abs(float(together - alone)) <= allowed * max(abs(float(together)), abs(float(alone))):
        raise ValueError(
            "The inner loss must be a mean over the examples of its batch (plus penalties): of all "
            f"examples it is {float(together):.6g}, while the mean of the examples taken one by "
            f"one is {float(alone):.6g}. Divide a sum by the size of the batch; layers that mix "
            "examples (batch norm) have no loss of a single one."
        )


def _floating(tree: PyTree) -> list[Array]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
