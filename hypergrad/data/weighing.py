"""A weight for each training example, found by metagradient steps."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree

from hypergrad.arguments import as_arrays, check_leaves
from hypergrad.data.frames import to_frame, without_frames
from hypergrad.data.trained import (
    check_count,
    check_order,
    check_queries,
    over_weights,
)
from hypergrad.data.weighted import WeightedExamples
from hypergrad.estimator import Estimator
from hypergrad.expected import require
from hypergrad.implicit.trains import check_trains
from hypergrad.outer import Alternating, Box, run
from hypergrad.outer.constraints import check_start
from hypergrad.problem import BilevelProblem

# Weights are of order one, and Adam's steps of the size of its rate: ten cross the range.
_DEFAULT_OPTIMIZER = optax.adam(0.1)


class Weighing(eqx.Module):
    """What `weigh` found.

    - `weights`: of the `n` examples, where the loss was least.
    - `params`: the training at these weights.
    - `value`: its mean query loss (held-out queries, if there are).
    - `losses`: mean query loss at each step; the first is that of the start.
    - `status`: how the run ended, as `hypergrad.outer.Result.status`.
    - `index`: of the rows, if the examples were data frames.
    """

    weights: Float[np.ndarray, " n"]
    params: PyTree
    value: float
    losses: Float[np.ndarray, " steps"]
    status: str
    index: Any = None

    def frame(self) -> Any:
        """A pandas data frame with a row an example: its `weight`."""
        return to_frame({"weight": self.weights}, self.index)


def weigh(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    examples: PyTree,
    queries: PyTree,
    *,
    estimator: Estimator,
    steps: int = 20,
    optimizer: optax.GradientTransformation = _DEFAULT_OPTIMIZER,
    constraint: Any = None,
    start: Any = None,
    order: Any = None,
    holdout: PyTree = None,
    seed: int = 0,
    **options: Any,
) -> Weighing:
    """Weights of the training examples for the least mean query loss.

    Each step trains from `params` at the weights, and moves them by the metagradient.

    **Arguments:**

    - `problem`, `params`, `hparams`, `examples`, `queries`, `order`: as for `attribute`; `params`
      are where each training starts. Data frames are taken as arrays.
    - `estimator`: it trains: `Unrolled(...)`, `ImplicitDifferentiation(solver)`.
    - `steps`: trainings.
    - `optimizer`: optax optimizer of the weights. Default: Adam with 0.1.
    - `constraint`: feasible weights; see `hypergrad.outer.project`. Default: `Box(0, 1)`. Weights
      are relative: the loss is divided by their sum.
    - `start`: weights to begin with, shape `(n,)`. Default: ones.
    - `holdout`: queries that move nothing; the weights with the least loss on them are kept. A
      weight for each example fits few queries easily.
    - `seed`: of the noise of stochastic problems.
    - `options`: further ones of `hypergrad.outer.run`: `callbacks`, `checkpoint`, `patience`.

    **Returns:** a `Weighing`.

    **Raises:** `ValueError` for bad input, also for a start outside the constraint.
    """
    require("weigh", "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    check_leaves(params=params, hparams=hparams)
    check_trains(estimator, "each step has other weights")
    examples, index = without_frames("examples", examples)
    queries, _ = without_frames("queries", queries)
    holdout, _ = without_frames("holdout", holdout)
    params, hparams, examples, queries = as_arrays((params, hparams, examples, queries))
    weighted = WeightedExamples(problem, hparams, examples)
    check_queries(weighted, params, queries, jax.random.key(0))
    size = weighted.size
    numbers = jnp.arange(size) if order is None else check_order(order, size)
    dtype = jnp.result_type(float)
    weights = jnp.ones(size, dtype) if start is None else jnp.asarray(start, dtype)
    if weights.shape != (size,):
        raise ValueError(f"start: expected weights of shape ({size},), received {weights.shape}.")
    constraint = Box(0.0, 1.0) if constraint is None else constraint
    check_start(constraint, weights, "start")
    algorithm = Alternating(estimator, optimizer, start="cold", constraint=constraint)
    result = run(
        over_weights(weighted),
        algorithm,
        params,
        weights,
        numbers,
        queries,
        steps=check_count("steps", steps),
        seed=seed,
        holdout_data=holdout,
        **options,
    )
    best = result.best if result.holdout_best is None else result.holdout_best
    return Weighing(
        np.asarray(best.hparams),
        best.params,
        float(best.value),
        np.array([row["value"] for row in result.history]),
        result.status,
        index,
    )
