"""Trainings at given weights of their examples: the mean query loss, and its derivative."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.data.weighted import WeightedExamples
from hypergrad.estimator import Estimator, Hypergradient
from hypergrad.over_keys import of_expectation
from hypergrad.problem import BilevelProblem


class QueryLoss(eqx.Module):
    """The loss that queries are judged by, at fixed hyperparameters."""

    weighted: WeightedExamples

    def __call__(self, params: PyTree, _: Array, query: PyTree, key: Array | None = None) -> Array:
        """The problem's outer loss on a batch of queries."""
        return self.weighted.problem.outer_loss(params, self.weighted.hparams, query, key)[0]


def over_weights(weighted: WeightedExamples) -> BilevelProblem:
    """The bilevel problem whose hyperparameters are the examples' weights."""
    return BilevelProblem(weighted, QueryLoss(weighted), stochastic=weighted.problem.stochastic)


@eqx.filter_jit
def train(
    weighted: WeightedExamples,
    estimator: Estimator,
    params: PyTree,
    weights: Array,
    numbers: Array,
    queries: PyTree,
    key: Array | None,
) -> Hypergradient:
    """One training at these weights, and the derivative of the mean query loss in them."""
    problem = over_weights(weighted)
    state = estimator.init(problem, params, weights, numbers, key=key)
    state, _ = estimator.fit(problem, state, weights, numbers, key=key)
    out = estimator.hypergradient(problem, state, weights, numbers, queries, key=key)
    return eqx.tree_at(lambda o: o.info, out, of_expectation(problem, estimator, out.info))


def check_queries(
    weighted: WeightedExamples, params: PyTree, queries: PyTree, key: Array | None
) -> None:
    """Refuse queries that the model does not take; costs a trace."""
    check_taken("queries", QueryLoss(weighted), params, queries, key)


def check_taken(
    name: str, loss: Callable, params: PyTree, batch: PyTree, key: Array | None
) -> None:
    """Refuse a batch that the outer loss of this model does not take; costs a trace."""
    try:
        eqx.filter_eval_shape(loss, params, None, batch, key)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        shapes = [leaf.shape for leaf in jax.tree.leaves(batch) if eqx.is_array(leaf)]
        raise ValueError(
            f"{name}: expected a batch of the outer loss, received arrays of shapes {shapes}, "
            f"which it refuses: {error!r}"
        ) from error


def check_order(order: Any, size: int) -> Array:
    """The numbers of the examples that each step takes, `(steps, batch)`."""
    numbers = np.asarray(order)
    whole = np.issubdtype(numbers.dtype, np.integer)
    if not whole or numbers.ndim != 2 or numbers.min() < 0 or numbers.max() >= size:
        raise ValueError(
            f"order: expected integers from 0 to {size - 1} of shape (steps, batch), received "
            f"{numbers.dtype} of shape {numbers.shape}."
        )
    return jnp.asarray(numbers)


def check_count(name: str, value: Any, most: int | None = None) -> int:
    """`value`, if it is an integer from 1 to `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        wanted = "a positive integer" if most is None else f"an integer from 1 to {most}"
        raise ValueError(f"{name}: expected {wanted}, received {value!r}.")
    return int(value)


def check_finite(value: Any, step: int) -> None:
    """Refuse to go on from a training whose loss is no number."""
    if not np.isfinite(float(value)):
        raise FloatingPointError(
            f"The query loss at step {step} is {float(value)}: the training diverged. Lower its "
            "learning rate."
        )
