"""Which hyperparameter reaches which loss, found by tracing and never by running.

A derivative that automatic differentiation knows to be zero comes out of the traced program as a
constant: the output does not depend on the cotangent. That is the mark looked for here. It tells an
exact structural zero (a learning rate, a dropout rate that only thresholds random numbers) from a
number that merely happens to be small.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

from hypergrad.problem import BilevelProblem


class Reach(NamedTuple):
    """Where one hyperparameter leaf acts.

    - `inner`: it moves the inner solution, i.e. `∂²f/∂w∂λ` is not structurally zero.
    - `outer`: it has a direct derivative in the outer loss.
    - `used`: one of the losses reads it, differentiably or not.
    """

    inner: bool
    outer: bool
    used: bool


class Paths(NamedTuple):
    """What reaches what in a problem.

    - `hparams`: a `Reach` for each leaf, by its path.
    - `inner_params`, `outer_params`: whether the inner gradient, and the outer loss, depend on
      `params` at all.
    """

    hparams: dict[str, Reach]
    inner_params: bool
    outer_params: bool


def leaf_names(tree: PyTree) -> list[str]:
    """The path of each leaf, joined with `/`; a bare leaf is named `hparams`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "hparams" for path in paths]


def trace_paths(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
    key: Array | None = None,
) -> Paths:
    """Trace both losses and their derivatives abstractly; nothing is computed.

    **Arguments:** as `hypergrad.hypergradient`; arrays may be tracers or `ShapeDtypeStruct`s.

    **Returns:** a `Paths`.
    """
    w, w_static = eqx.partition(params, eqx.is_inexact_array)
    h, h_static = eqx.partition(hparams, eqx.is_inexact_array)
    names = leaf_names(h)

    def residual(p: PyTree, lam: PyTree, rest: tuple) -> PyTree:
        batch, _, key = rest
        point, lam = eqx.combine(p, w_static), eqx.combine(lam, h_static)
        return eqx.filter(problem.residual(point, lam, batch, key), eqx.is_inexact_array)

    def outer(p: PyTree, lam: PyTree, rest: tuple) -> Array:
        _, batch, key = rest
        return problem.outer_loss(eqx.combine(p, w_static), eqx.combine(lam, h_static), batch, key)[
            0
        ]

    def pull(function: Callable) -> Callable:
        def pulled(p: PyTree, lam: PyTree, rest: tuple, cotangent: PyTree) -> tuple:
            return jax.vjp(lambda a, b: function(a, b, rest), p, lam)[1](cotangent)

        return pulled

    rest_arrays, rest_static = eqx.partition((inner_batch, outer_batch, key), eqx.is_array)

    def flags(function: Callable) -> tuple[list[bool], bool, list[bool]]:
        """For each hparams leaf, for params, and for each hparams leaf without derivatives."""

        def closed(p: PyTree, lam: PyTree, arrays: tuple) -> PyTree:
            return function(p, lam, eqx.combine(arrays, rest_static))

        def derivative(p: PyTree, lam: PyTree, arrays: tuple, cotangent: PyTree) -> tuple:
            return pull(function)(p, lam, eqx.combine(arrays, rest_static), cotangent)

        arguments = _abstract((w, h, rest_arrays))
        read, cotangent = jax.make_jaxpr(closed, return_shape=True)(*arguments)
        sizes = [len(jax.tree.leaves(a)) for a in arguments]
        traced = jax.make_jaxpr(derivative)(*arguments, cotangent).jaxpr
        first = sum(sizes)
        reached = [
            any(used[first:]) for used in (inputs_of(traced, i) for i in range(len(traced.outvars)))
        ]
        reached_params, reached_hparams = reached[: sizes[0]], reached[sizes[0] :]
        used = inputs_of(read.jaxpr, *range(len(read.jaxpr.outvars)))
        return reached_hparams, any(reached_params), used[sizes[0] : sizes[0] + sizes[1]]

    inner_reached, inner_params, inner_used = flags(residual)
    outer_reached, outer_params, outer_used = flags(outer)
    hparam_flags = zip(inner_reached, outer_reached, inner_used, outer_used, strict=True)
    reaches = [Reach(a, b, c or d) for a, b, c, d in hparam_flags]
    return Paths(dict(zip(names, reaches, strict=True)), inner_params, outer_params)


def require_effect(paths: Paths, estimator: str, *, unseen: bool = False) -> None:
    """Refuse a problem in which a hyperparameter, or `params`, has no effect to differentiate.

    A leaf that only the outer loss reads is legitimate: its gradient is the direct one. With
    `unseen`, leaves without effect are allowed as long as there are others.

    **Raises:** `ValueError` naming the leaf and the estimators that could see it.
    """
    if not paths.hparams:
        raise ValueError(
            "There is nothing to differentiate: hparams has no leaf that is a floating-point array."
        )
    if not paths.outer_params:
        on = [name for name, reach in paths.hparams.items() if reach.outer]
        but = f"only on hparams ({', '.join(on)})" if on else "on neither params nor hparams"
        raise ValueError(
            f"The outer loss does not depend on params; it depends {but}. "
            "It must evaluate the inner solution."
        )
    if not paths.inner_params:
        raise ValueError(
            "The inner loss has no curvature in params: its gradient does not depend on them, so "
            "there is no inner solution to differentiate."
        )
    dead = [name for name, reach in paths.hparams.items() if not (reach.inner or reach.outer)]
    if not dead or (unseen and len(dead) < len(paths.hparams)):
        return
    unread = [name for name in dead if not paths.hparams[name].used]
    names = ", ".join(repr(name) for name in dead)
    if unread == dead:
        reason = (
            "neither loss reads it. If it acts inside the training step (learning rate, momentum, "
            "weight decay of the optimizer, initialisation), `Unrolled` can see it; otherwise "
            "leave it to a searcher"
        )
    else:
        reason = (
            "the losses read it, but its derivative is identically zero (a threshold, a rounding, "
            "a stop_gradient, a term without params). A relaxation can make it visible; "
            "`SelfTuning` layers or a searcher need none"
        )
    raise ValueError(f"{estimator} cannot see hyperparameter {names}: {reason}.")


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def inputs_of(jaxpr: jax.extend.core.Jaxpr, *outputs: int) -> list[bool]:
    """Which inputs of a traced program the given outputs depend on."""
    wanted = [i in outputs for i in range(len(jaxpr.outvars))]
    return list(partial_eval.dce_jaxpr(jaxpr, wanted)[1])
