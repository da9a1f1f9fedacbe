"""The derivative of a hypergradient, for whoever differentiates through `hypergradient(...)`.

A second outer level (a learning rate of the outer descent, a prior over hyperparameters) needs the
derivative of the hypergradient itself. The loops inside, of the inner solver and of the linear
solve, have none in reverse mode, and in forward mode that of their unfinished iterates. So it is
attached by the implicit function theorem once more, to the solution that was found.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from hypergrad.estimator import Hypergradient
from hypergrad.implicit.differentiable import implicit_solver
from hypergrad.implicit.differentiation import ImplicitDifferentiation
from hypergrad.problem import BilevelProblem


def answered(
    problem: BilevelProblem,
    estimator: ImplicitDifferentiation,
    state: Any,
    data: tuple[PyTree, PyTree, PyTree],
    key: Array | None,
) -> Hypergradient:
    """`fit` and `hypergradient`, to be differentiated in both modes and to any order.

    The derivative of `value`, `grad`, `aux` and `state.params` in the hyperparameters, the batches
    and arrays that the losses hold as fields is that of the exact solution and of the exact
    hypergradient, evaluated where the inner solver stopped; `damping` and `curvature` do not enter
    it. It takes linear solves by the estimator's `linear_solver`, and one that is not solved is a
    runtime error. The derivative of all else, and in the state given, is zero.

    Where a loss closes over a traced array, nothing is attached, since the rule would not see that
    array: JAX differentiates the loops themselves, in forward mode, and refuses reverse mode.

    **Arguments:**

    - `problem`, `estimator`, `state`, `key`: as of the verbs.
    - `data`: hyperparameters, inner batch, outer batch.
    """
    kept: list[PyTree] = []

    def run(problem: BilevelProblem, data: tuple, state: Any, estimator: Any, key: Any) -> Any:
        hparams, inner_batch, outer_batch = data
        fitted, _ = estimator.fit(problem, state, hparams, inner_batch, key=key)
        return estimator.hypergradient(problem, fitted, hparams, inner_batch, outer_batch, key=key)

    if _close_over_tracers(problem, state.params, data, key):
        return run(problem, data, state, estimator, key)

    @eqx.filter_custom_jvp
    def answer(problem: BilevelProblem, data: tuple, state: Any, estimator: Any, key: Any) -> Any:
        arrays, rest = eqx.partition(run(problem, data, state, estimator, key), eqx.is_array)
        kept[:] = [rest]
        return arrays

    @answer.def_jvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        arrays = answer(*primals)
        out = eqx.combine(arrays, kept[0])
        moving, along = primals[:2], tangents[:2]
        moved = eqx.filter(moving, jax.tree.map(lambda t: t is not None, along, is_leaf=_is_none))
        fixed = eqx.filter(moving, jax.tree.map(lambda t: t is None, along, is_leaf=_is_none))

        def exact(moved: PyTree) -> tuple[PyTree, ...]:
            problem, data = eqx.combine(moved, fixed)
            return _exact(problem, out, primals[3], data, primals[4])

        _, slopes = jax.jvp(exact, (moved,), (along,))
        value, grad, aux, params = slopes
        nothing = jax.tree.map(lambda _: None, arrays)
        slope = eqx.tree_at(
            lambda o: (o.value, o.grad, o.aux, o.state.params),
            nothing,
            (value, _like(grad, arrays.grad), _like(aux, arrays.aux), params),
            is_leaf=_is_none,
        )
        return arrays, slope

    return eqx.combine(answer(problem, data, state, estimator, key), kept[0])


def _exact(
    problem: BilevelProblem,
    out: Hypergradient,
    estimator: ImplicitDifferentiation,
    data: tuple,
    key: Array | None,
) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """Value, gradient, auxiliary output and solution as functions of the data, at the solution."""
    hparams, inner_batch, outer_batch = data
    solve = implicit_solver(problem, lambda params, *_: params, estimator.linear_solver)
    moving, static = eqx.partition(hparams, eqx.is_inexact_array)

    def outer(moving: PyTree) -> tuple[Array, PyTree]:
        hparams = eqx.combine(moving, static)
        found = solve(out.state.params, hparams, inner_batch, key)
        value, aux = problem.outer_loss(found, hparams, outer_batch, key)
        arrays = (aux, found)
        return value, eqx.filter(arrays, eqx.is_inexact_array)

    (value, (aux, found)), grad = jax.value_and_grad(outer, has_aux=True)(moving)
    return value, grad, aux, found


def _close_over_tracers(
    problem: BilevelProblem, params: PyTree, data: tuple, key: Array | None
) -> bool:
    """Whether a loss reads a traced array that is none of its arguments."""
    arrays, static = eqx.partition((problem, params, data, key), eqx.is_array)

    def losses(arrays: PyTree) -> PyTree:
        problem, params, (hparams, inner_batch, outer_batch), key = eqx.combine(arrays, static)
        if problem.optimality is None:
            inner, _ = problem.inner_loss(params, hparams, inner_batch, key)
        else:
            inner = problem.residual(params, hparams, inner_batch, key)
        return inner, problem.outer_loss(params, hparams, outer_batch, key)[0]

    consts = jax.make_jaxpr(losses)(arrays).consts
    return any(isinstance(const, jax.core.Tracer) for const in consts)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _like(tree: PyTree, wanted: PyTree) -> PyTree:
    """`tree` without the leaves that `wanted` does not have."""
    return jax.tree.map(lambda w, t: None if w is None else t, wanted, tree, is_leaf=_is_none)
