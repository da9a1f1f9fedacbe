"""Which hyperparameter reaches which loss, found by tracing and never by running.

A derivative that automatic differentiation knows to be zero comes out of the traced program as a
constant: the output does not depend on the cotangent. That is the mark looked for here. It tells an
exact structural zero (a learning rate, a dropout rate that only thresholds random numbers) from a
number that merely happens to be small.
"""

import warnings
from collections.abc import Callable, Sized
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

from hypergrad.jumps import hidden_reads
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem


class Reach(NamedTuple):
    """Where one hyperparameter leaf acts.

    - `inner`: it moves the inner solution, i.e. `∂²f/∂w∂λ` is not structurally zero.
    - `outer`: it has a direct derivative in the outer loss.
    - `used`: one of the losses reads it, differentiably or not.
    - `hidden`: the operations of the losses (a comparison, a rounding, an index, ...) through which
      it acts and that no derivative sees.
    """

    inner: bool
    outer: bool
    used: bool
    hidden: tuple[str, ...] = ()

    @property
    def seen(self) -> bool:
        """There is a derivative."""
        return self.inner or self.outer

    @property
    def biased(self) -> bool:
        """There is a derivative, and it is a part of the truth only."""
        return self.seen and bool(self.hidden)


class Paths(NamedTuple):
    """What reaches what in a problem.

    - `hparams`: a `Reach` for each leaf, by its path.
    - `inner_params`, `outer_params`: whether the inner gradient, and the outer loss, depend on
      `params` at all.
    - `kept`: derivatives that are a part of the truth only are wanted all the same.
    """

    hparams: dict[str, Reach]
    inner_params: bool
    outer_params: bool
    kept: bool = False

    @property
    def differentiated(self) -> list[bool]:
        """For each leaf of hparams: it gets a gradient."""
        return [r.seen and (self.kept or not r.biased) for r in self.hparams.values()]

    @property
    def partial(self) -> bool:
        """Some gradient that is given is a part of the truth only."""
        return self.kept and any(r.biased for r in self.hparams.values())


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
    given = RestrictedProblem(problem, params, hparams)
    w, h = given.w, given.h
    arrays, rest_static = eqx.partition((inner_batch, outer_batch, key), eqx.is_array)
    arguments = _abstract((w, h, arrays))
    first, last = len(jax.tree.leaves(w)), len(jax.tree.leaves((w, h)))

    def at(p: PyTree, lam: PyTree, arrays: tuple) -> RestrictedProblem:
        point = (given.params_at(p), given.hparams_at(lam))
        return RestrictedProblem(problem, *point, *eqx.combine(arrays, rest_static))

    def residual(p: PyTree, lam: PyTree, arrays: tuple) -> PyTree:
        return at(p, lam, arrays).residual()

    def outer(p: PyTree, lam: PyTree, arrays: tuple) -> Array:
        return at(p, lam, arrays).outer_loss()

    def inner_derivative(p: PyTree, lam: PyTree, arrays: tuple, q: PyTree) -> tuple:
        slope = at(p, lam, arrays).directional_derivative()
        return jax.grad(slope, argnums=(0, 1))(p, lam, q)

    def outer_derivative(p: PyTree, lam: PyTree, arrays: tuple, cotangent: Array) -> tuple:
        value, pull = jax.vjp(lambda p, lam: outer(p, lam, arrays), p, lam)
        return pull(cotangent.astype(value.dtype))

    def reached(derivative: Callable, cotangent: PyTree) -> list[bool]:
        """For each leaf of params, then of hparams: its derivative is no constant zero."""
        program = jax.make_jaxpr(derivative)(*arguments, cotangent).jaxpr
        start = len(jax.tree.leaves(arguments))
        return [any(inputs_of(program, i)[start:]) for i in range(last)]

    def read(function: Callable) -> list[bool]:
        """For each leaf of hparams."""
        program = jax.make_jaxpr(function)(*arguments).jaxpr
        return inputs_of(program, *range(len(program.outvars)))[first:last]

    by_inner = reached(inner_derivative, _abstract(w))
    by_outer = reached(outer_derivative, jax.ShapeDtypeStruct((), jnp.float32))
    used = [a or b for a, b in zip(by_inner[first:], by_outer[first:], strict=True)]
    if not all(used):
        used = [a or b for a, b in zip(read(residual), read(outer), strict=True)]

    def hidden(function: Callable) -> list[tuple[str, ...]]:
        return hidden_reads(jax.make_jaxpr(function)(*arguments), range(first, last))

    def training(part: Callable) -> Callable:
        def read_by(p: PyTree, lam: PyTree, arrays: tuple) -> PyTree:
            here = at(p, lam, arrays)
            out = part(here.params, here.hparams, here.inner_batch, here.key)
            return eqx.filter(out, eqx.is_array)

        return read_by

    parts = [outer, *(training(part) for part in problem.inner_parts())]
    by_part = [hidden(part) for part in parts]
    blind = [tuple(sorted(set().union(*reasons))) for reasons in zip(*by_part, strict=True)]
    reaches = map(Reach, by_inner[first:], by_outer[first:], used, blind)
    return Paths(
        dict(zip(leaf_names(h), reaches, strict=True)),
        any(by_inner[:first]),
        any(by_outer[:first]),
        problem.biased == "keep",
    )


def require_differentiable(leaves: Sized) -> None:
    """Refuse hyperparameters of which none can be differentiated.

    **Arguments:**

    - `leaves`: those that can.

    **Raises:** `ValueError`.
    """
    if not leaves:
        raise ValueError(
            "There is nothing to differentiate: hparams: expected at least one floating-point "
            "array, received none. A number to differentiate is written 1.0 in place of 1."
        )


def require_effect(paths: Paths, estimator: str, *, unseen: bool = False) -> None:
    """Refuse a problem in which a hyperparameter, or `params`, has no effect to differentiate.

    A leaf that only the outer loss reads is legitimate: its gradient is the direct one. With
    `unseen`, leaves without effect, or with a part of it that no derivative sees, are allowed as
    long as there are others.

    **Raises:** `ValueError` naming the leaf and the estimators that could see it.
    """
    require_differentiable(paths.hparams)
    if not paths.outer_params:
        on = [name for name, reach in paths.hparams.items() if reach.outer]
        but = f"only on hparams ({', '.join(on)})" if on else "on neither params nor hparams"
        raise ValueError(
            f"The outer loss does not depend on params; it depends {but}. "
            "Expected one that evaluates the inner solution."
        )
    if not paths.inner_params:
        raise ValueError(
            "The inner loss has no curvature in params: its gradient does not depend on them, so "
            "there is no inner solution to differentiate. Expected a loss with one."
        )
    if unseen and any(paths.differentiated):
        refuse_biased(paths.hparams, estimator, kept=paths.kept, unseen=True)
        return
    dead = [name for name, reach in paths.hparams.items() if not reach.seen]
    if not dead:
        refuse_biased(paths.hparams, estimator, kept=paths.kept)
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


def refuse_biased(
    reaches: dict[str, Reach], estimator: str, *, kept: bool, unseen: bool = False
) -> None:
    """Refuse, or with `kept` warn of, derivatives that are a part of the truth only.

    **Raises:** `ValueError` naming the leaf and what hides a part of its effect.
    """
    biased = {name: reach.hidden for name, reach in reaches.items() if reach.biased}
    if not biased or (unseen and not kept):
        return
    named = "; ".join(f"{name!r} through {', '.join(why)}" for name, why in biased.items())
    if kept:
        warnings.warn(
            f"{estimator}: the gradient is biased. It misses what acts by {named}; info.error is "
            "not known.",
            BiasedHypergradientWarning,
            stacklevel=3,
        )
        return
    raise ValueError(
        f"{estimator} sees only a part of what a hyperparameter does, and its gradient would be "
        f"biased: {named}. Leave it to a searcher, relax it, or use self-tuning layers; "
        'BilevelProblem(..., biased="keep") takes the part that is seen.'
    )


class BiasedHypergradientWarning(UserWarning):
    """A hyperparameter acts through an operation without derivative as well; it was insisted on."""


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def inputs_of(jaxpr: jax.extend.core.Jaxpr, *outputs: int) -> list[bool]:
    """Which inputs of a traced program the given outputs depend on."""
    wanted = [i in outputs for i in range(len(jaxpr.outvars))]
    return list(partial_eval.dce_jaxpr(jaxpr, wanted)[1])
