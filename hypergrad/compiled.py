"""`hypergradient(...)`, the entry point: compiled once, checked before it is handed over."""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.estimator import (
    INNER_SOLVED,
    LINEAR_SOLVED,
    Estimator,
    Hypergradient,
    HypergradientInfo,
    check_state,
)
from hypergrad.expected import require_flag
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.implicit.second_order import answered
from hypergrad.mistakes import check_estimator
from hypergrad.outcome import Outcome, text_of
from hypergrad.over_keys import of_expectation
from hypergrad.problem import BilevelProblem
from hypergrad.recompilation import note_compilation, numbers_traced

_LARGE = 0.1  # of relative errors: worth a warning


class InaccurateHypergradientWarning(UserWarning):
    """The hypergradient is returned, but its own diagnostics say not to trust it."""


class InaccurateHypergradientError(RuntimeError):
    """Raised with `strict=True` in place of a hypergradient that is not to be trusted."""


def hypergradient(
    problem: BilevelProblem,
    params: PyTree | None,
    hparams: PyTree,
    inner_batch: PyTree = None,
    outer_batch: PyTree = None,
    *,
    estimator: Estimator | None = None,
    state: Any = None,
    key: Array | None = None,
    strict: bool = False,
) -> Hypergradient:
    """The outer loss at the inner solution and its total derivative in the hyperparameters.

    Compiled once for each problem, estimator and structure of the arguments; new values of
    `hparams`, `params`, the batches or the state never compile again. Usable inside `jit`, `vmap`
    and `scan`; with `ImplicitDifferentiation` also inside `jax.grad`, `jax.jvp` and `jax.hessian`
    (`hypergrad.implicit.second_order`), with the unrolled estimators inside `jax.jvp`.

    **Arguments:**

    - `problem`: the two losses.
    - `params`: the inner point to start from; with an estimator that has no inner solver, the inner
      solution itself. May be `None` when `state` is given.
    - `hparams`: the hyperparameters, any pytree. Python floats and numpy arrays are taken as
      arrays; other leaves that are not floating point are carried, and get the gradient `None`.
    - `inner_batch`, `outer_batch`: handed to the inner and the outer loss as they are.
    - `estimator`: by default `ImplicitDifferentiation()`, which takes `params` as solved.
    - `state`: the state of an earlier result, for a warm start. Then `params`, if given, replaces
      the inner point of that state.
    - `key`: for stochastic problems, one key for everything in this call. How far the gradient for
      one key is from the expectation is not known: `info.error` is NaN, unless it is large for
      another reason, and `info.outcome` says so. `OverKeys(estimator, keys)` takes several and
      estimates it.
    - `strict`: raise instead of returning a gradient whose estimated error exceeds its norm, or
      which is of one key, or biased; without an estimate, one whose inner or linear residual is not
      small, or not known.

    **Returns:** a `Hypergradient` with `value`, `grad`, `state`, `info` and `aux`.

    **Raises:**

    - `ValueError` for a hyperparameter without effect, or with a part of it that no derivative
      sees (named; `BilevelProblem.biased`), for complex arrays, a loss that is not a real scalar,
      an outer loss that ignores `params`.
    - `InaccurateHypergradientError` with `strict=True`; inside `jit` a runtime error
      with its text.

    In eager use a result that is not to be trusted comes with an `InaccurateHypergradientWarning`,
    once for each place it is called from.
    """
    if estimator is None:
        estimator = ImplicitDifferentiation()
    check_estimator(estimator)
    if state is not None:
        check_state(estimator, state)
    require_flag("hypergradient", "strict", strict)
    check_call(
        "hypergradient",
        problem,
        key,
        params=params,
        hparams=hparams,
        inner_batch=inner_batch,
        outer_batch=outer_batch,
    )
    if params is None and state is None:
        raise ValueError(
            "hypergradient needs params, or the state of an earlier call: expected one of them, "
            "received None for both."
        )
    arguments = as_arrays((params, hparams, inner_batch, outer_batch))
    out = _compiled(problem, numbers_traced(estimator), state, arguments, key)
    possible = doubts(out.info)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(out)):
        return _refuse_traced(out, possible) if strict else out
    present = [doubt for doubt in possible if bool(np.any(doubt.holds))]
    refusal = next((doubt for doubt in present if doubt.refuse), None)
    if strict and refusal is not None:
        raise InaccurateHypergradientError(f"strict: {refusal.text}")
    # What is merely not known is strict's affair: who switches the estimate off knows it.
    told = next((doubt for doubt in present if doubt.warn), None)
    if told is not None:
        warnings.warn(told.text, InaccurateHypergradientWarning, stacklevel=2)
    return out


@eqx.filter_jit
def _compiled(
    problem: BilevelProblem,
    estimator: Estimator,
    state: Any,
    arguments: tuple[PyTree, PyTree, PyTree, PyTree],
    key: Array | None,
) -> Hypergradient:
    note_compilation("hypergradient", (problem, estimator), (arguments, state))
    params, hparams, inner_batch, outer_batch = arguments
    if state is None:
        state = estimator.init(problem, params, hparams, inner_batch, key=key)
    elif params is not None:
        state = eqx.tree_at(lambda s: s.params, state, params)
    if isinstance(estimator, ImplicitDifferentiation):
        out = answered(problem, estimator, state, arguments[1:], key)
    else:
        state, _ = estimator.fit(problem, state, hparams, inner_batch, key=key)
        out = estimator.hypergradient(problem, state, hparams, inner_batch, outer_batch, key=key)
    return eqx.tree_at(lambda o: o.info, out, of_expectation(problem, estimator, out.info))


class Doubt(NamedTuple):
    """A reason not to trust a result, and what to do."""

    holds: Array
    text: str
    refuse: bool
    warn: bool = True


_BROKEN = (Outcome.breakdown, Outcome.diverged, Outcome.not_polyhedral, Outcome.not_finite)
_CURVED = (Outcome.indefinite, Outcome.nonpositive_curvature)
_CUT_SHORT = (Outcome.max_steps_reached, Outcome.stagnated)
_UNSEEN = (Outcome.partial, Outcome.one_draw)
_ERROR_ABOVE_NORM = (
    "the estimated error of the hypergradient exceeds its norm (info.error > 1). Solve the inner "
    "problem (info.inner_residual) or the linear system (info.linear_residual) further; of losses "
    "with noise take more keys; of an unstable unrolled run fewer steps, smaller learning rates "
    "or float64."
)
_INACCURATE = (
    "the inner problem or the linear system is not solved well enough: the hypergradient may be "
    "more than 10 % off (see info.error, info.inner_residual, info.linear_residual; with OverKeys "
    "whether more keys are needed; with Metasmooth how smooth the training is, "
    "state.metasmoothness)."
)
_UNKNOWN = (
    "nothing is known about the error of the hypergradient (info.error is NaN, and so is a "
    "residual). Take an estimator that estimates its error."
)


def doubts(info: HypergradientInfo) -> list[Doubt]:
    """What may be wrong with a result, worst first; traced or not."""
    # No numbers in the texts: so Python's own rule of one warning for each place and text applies.
    error, outcome = info.error, info.outcome
    known = ~jnp.isnan(error)
    rough = info.linear_residual > LINEAR_SOLVED
    # A residual that is not known does not count as small, nor as large. The error of one draw is
    # known to be small but for how draws differ.
    unsolved = ~known & ((info.inner_residual > INNER_SOLVED) | rough)
    unsolved &= outcome != Outcome.one_draw
    curved = [(outcome == each, text_of(each)) for each in _CURVED]
    cut_short = [
        (rough & (outcome == each), f"{_INACCURATE} And {text_of(each)}") for each in _CUT_SHORT
    ]
    return [
        *(Doubt(outcome == each, text_of(each), True) for each in _BROKEN),
        *(Doubt(holds & ~(error <= 1), text, True) for holds, text in curved),
        Doubt(outcome == Outcome.not_metasmooth, text_of(Outcome.not_metasmooth), True),
        Doubt(error > 1, _ERROR_ABOVE_NORM, True),
        *(Doubt(holds & unsolved, text, True) for holds, text in cut_short),
        *(Doubt(outcome == each, text_of(each), True, warn=False) for each in _UNSEEN),
        Doubt(unsolved, _INACCURATE, True),
        *(Doubt(holds, text, False) for holds, text in curved),
        *(Doubt(holds & (error > _LARGE), text, False) for holds, text in cut_short),
        Doubt(error > _LARGE, _INACCURATE, False),
        Doubt(~known & ~info.solved, _UNKNOWN, refuse=True, warn=False),
    ]


def _refuse_traced(out: Hypergradient, possible: list[Doubt]) -> Hypergradient:
    refusals = [doubt for doubt in possible if doubt.refuse]
    holds = jnp.stack([doubt.holds for doubt in refusals])
    texts = [f"strict: {doubt.text}" for doubt in refusals]
    grad = eqx.branched_error_if(out.grad, jnp.any(holds), jnp.argmax(holds, axis=0), texts)
    return eqx.tree_at(lambda o: o.grad, out, grad, is_leaf=lambda x: x is None)


def strong(tree: PyTree) -> PyTree:
    """The same without weak types, which would compile the second step of a loop anew."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, tree
    )
