"""Many tasks as one bilevel problem: params for each, hyperparameters for all."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.expected import require
from hypergrad.inner import InnerSolver, as_inner_solver
from hypergrad.problem import BilevelProblem


class UnseenTasks(eqx.Module):
    """Tasks that tune nothing, as `holdout_data` of `hypergrad.outer.run`.

    At each evaluation their params are solved for anew: the held-out loss is that of tasks never
    seen, and the guard against over-tuning watches it.

    **Arguments:**

    - `inner`, `outer`: their training and validation data, with a leading axis of tasks.
    - `start`: the params of one task from which each begins.
    """

    inner: PyTree
    outer: PyTree
    start: PyTree


class TaskProblem(BilevelProblem):
    """The problem that `over_tasks` makes.

    - `one`: the problem of one task.
    - `solver`: solves the tasks that are not seen; `None` if there are none.
    """

    one: BilevelProblem = None  # type: ignore[assignment]
    solver: InnerSolver | None = None

    def __init__(self, one: BilevelProblem, solver: InnerSolver | None = None) -> None:
        require("over_tasks", "problem", one, BilevelProblem, "BilevelProblem(inner, outer)")
        self.one = one
        self.solver = solver
        # Sum and mean: the solution of every task is its own, and the number of tasks scales
        # nothing that one would tune.
        self.inner = None if one.inner is None else _total(one.inner_loss, jnp.sum)
        self.outer = _total(one.outer_loss, jnp.mean)
        self.optimality = None if one.optimality is None else _stacked(one.residual)
        self.has_aux = False
        self.stochastic = one.stochastic
        self.biased = one.biased

    def unseen_losses(
        self, hparams: PyTree, tasks: UnseenTasks, key: Array | None = None
    ) -> Float[Array, " tasks"]:
        """The outer loss of each task, its params solved for from `tasks.start`.

        **Raises:** `ValueError` without a `solver`.
        """
        if self.solver is None:
            raise ValueError(
                "over_tasks: solver: expected one, to solve tasks not seen, received None."
            )
        solver = self.solver

        def loss(train: PyTree, valid: PyTree, number: Array) -> Scalar:
            noise = None if key is None else jax.random.fold_in(key, number)
            solution = solver.run(self.one, tasks.start, hparams, train, key=noise)
            return self.one.outer_loss(solution.params, hparams, valid, noise)[0]

        return _each_task(loss, tasks.inner, tasks.outer)

    def fitting(self, params: PyTree, data: PyTree) -> PyTree:
        """The first tasks, as many as the params are for."""
        leaves = [leaf for leaf in jax.tree.leaves(params) if eqx.is_array(leaf) and leaf.ndim]
        if not leaves:
            return data
        count = leaves[0].shape[0]
        return jax.tree.map(lambda x: x[:count] if eqx.is_array(x) and x.ndim else x, data)

    def evaluation_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> Scalar:
        """The mean outer loss; of `UnseenTasks` at their own solutions."""
        if isinstance(batch, UnseenTasks):
            return jnp.mean(self.unseen_losses(hparams, batch, key))
        return super().evaluation_loss(params, hparams, batch, key)


def over_tasks(problem: BilevelProblem, solver: Any = None) -> TaskProblem:
    """The same hyperparameters for all tasks, and params for each.

    Params have a leading axis over the tasks of a batch
    (`jax.tree.map(lambda a: jnp.stack([a] * m), params)`), and so have the arrays of both batches:
    row `i` of the inner batch are the training data of task `i`, of the outer batch its validation
    data. The inner loss is the sum of the tasks' inner losses, whose minimiser is that of every
    task by itself; the outer loss is the mean of theirs, its hypergradient the mean of theirs. All
    tasks are one vectorised program, for any estimator and outer algorithm.

    To tune on random batches of `m` out of many tasks, run with
    `sampler=PairedBatches(m, evaluate=False)` and, unless the inner solution is unique,
    `Alternating(..., start="cold")`: the params in the state are those of the last batch's tasks.

    **Arguments:**

    - `problem`: of one task. Auxiliary outputs are dropped; a stochastic problem gets the key
      folded with the number of the task in its batch.
    - `solver`: an inner solver (whatever `as_inner_solver` takes) for `UnseenTasks`.

    **Raises:** `ValueError` where leading axes differ.
    """
    return TaskProblem(problem, None if solver is None else as_inner_solver(solver))


def _each_task(function: Callable, *trees: PyTree) -> Any:
    """`function(*one task of each tree, number of the task)`, mapped over the leading axes."""
    dynamic, static = eqx.partition(trees, eqx.is_array)
    leaves = jax.tree_util.tree_leaves_with_path(dynamic)
    sizes = {leaf.shape[0] if leaf.ndim else 0 for _, leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        raise ValueError(
            "over_tasks: expected params and data whose arrays share a leading axis of tasks, "
            f"received {shapes} (params first)."
        )

    def one(part: PyTree, number: Array) -> Any:
        return function(*eqx.combine(part, static), number)

    return jax.vmap(one)(dynamic, jnp.arange(sizes.pop()))


def _keyed(key: tuple, number: Array) -> Array | None:
    return jax.random.fold_in(key[0], number) if key else None


def _total(loss: Callable, reduce: Callable) -> Callable:
    def total(params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> Scalar:
        def one(own: PyTree, data: PyTree, number: Array) -> Scalar:
            return loss(own, hparams, data, _keyed(key, number))[0]

        return reduce(_each_task(one, params, batch))

    return total


def _stacked(residual: Callable) -> Callable:
    def stacked(params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        def one(own: PyTree, data: PyTree, number: Array) -> PyTree:
            return residual(own, hparams, data, _keyed(key, number))

        return _each_task(one, params, batch)

    return stacked
