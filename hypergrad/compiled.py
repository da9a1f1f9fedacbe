"""The one-call front door: compiled once, checked before it is handed over."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.estimator import Estimator, Hypergradient
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.mistakes import check_estimator, check_key, check_leaves, check_state
from hypergrad.outcome import broke_down, met_nonpositive_curvature, text_of, worst
from hypergrad.over_keys import OverKeys
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
    and `scan`.

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
      another reason. `OverKeys(estimator, keys)` takes several and estimates it.
    - `strict`: raise instead of returning a gradient whose estimated error exceeds its norm.

    **Returns:** a `Hypergradient` with `value`, `grad`, `state`, `info` and `aux`.

    **Raises:**

    - `ValueError` for a hyperparameter without effect, or with a part of it that no derivative
      sees (named; `BilevelProblem.biased`), for complex arrays, a loss that is not a real scalar,
      an outer loss that ignores `params`.
    - `InaccurateHypergradientError` with `strict=True`; inside `jit` an `equinox` runtime error.

    In eager use a result that is not to be trusted comes with an `InaccurateHypergradientWarning`,
    once for each place it is called from.
    """
    if estimator is None:
        estimator = ImplicitDifferentiation()
    check_estimator(estimator)
    check_state(estimator, state)
    check_key(key)
    check_leaves(params=params, hparams=hparams, inner_batch=inner_batch, outer_batch=outer_batch)
    if params is None and state is None:
        raise ValueError("hypergradient needs params, or the state of an earlier call.")
    arguments = as_arrays((params, hparams, inner_batch, outer_batch))
    out = _compiled(problem, numbers_traced(estimator), state, arguments, key)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(out)):
        return _refuse_traced(out) if strict else out
    trouble = _trouble(out)
    if strict and trouble is not None and trouble.refuse:
        raise InaccurateHypergradientError(f"strict: {trouble.text}")
    if trouble is not None:
        warnings.warn(trouble.text, InaccurateHypergradientWarning, stacklevel=2)
    return out


def as_arrays(tree: PyTree) -> PyTree:
    """Python floats and numpy values as JAX arrays, so that their values are traced."""
    kinds = float | np.ndarray | np.generic
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, kinds) else x, tree)


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
    state, _ = estimator.fit(problem, state, hparams, inner_batch, key=key)
    out = estimator.hypergradient(problem, state, hparams, inner_batch, outer_batch, key=key)
    if not problem.stochastic or isinstance(estimator, OverKeys):
        return out
    # One key does not show how keys differ. What is known to be large is a lower bound.
    error = jnp.where(out.info.error <= _LARGE, jnp.nan, out.info.error)
    return eqx.tree_at(lambda o: o.info.error, out, error)


class _Trouble(eqx.Module):
    text: str
    refuse: bool


def _trouble(out: Hypergradient) -> _Trouble | None:
    """What is wrong with a result, worst first."""
    # No numbers in the texts: so Python's own rule of one warning for each place and text applies.
    info = out.info
    error = np.asarray(info.error)
    outcome = worst(info.outcome)
    if broke_down(outcome):
        return _Trouble(text_of(outcome), True)
    if met_nonpositive_curvature(outcome):
        return _Trouble(text_of(outcome), bool(np.any(~(error <= 1))))
    if np.any(error > 1):
        return _Trouble(
            "the estimated error of the hypergradient exceeds its norm (info.error > 1). Solve the "
            "inner problem (info.inner_residual) or the linear system (info.linear_residual) "
            "further.",
            True,
        )
    rough = np.asarray(info.linear_residual) > _LARGE
    unsolved = (np.asarray(info.inner_residual) > 1e-2) | rough
    if np.any(error > _LARGE) or np.any(np.isnan(error) & unsolved):
        text = (
            "the inner problem or the linear system is not solved well enough: the hypergradient "
            "may be more than 10 % off (see info.error, info.inner_residual, "
            "info.linear_residual)."
        )
        return _Trouble(f"{text} And {text_of(outcome)}" if np.any(rough) else text, False)
    return None


def _refuse_traced(out: Hypergradient) -> Hypergradient:
    info = out.info
    indefinite = info.nonpositive_curvature & ~(info.error <= 1)
    grad = eqx.error_if(
        out.grad,
        info.breakdown | indefinite | (info.error > 1),
        "strict: the estimated error of the hypergradient exceeds its norm, or its linear solve "
        "broke down.",
    )
    return eqx.tree_at(lambda o: o.grad, out, grad, is_leaf=lambda x: x is None)


def strong(tree: PyTree) -> PyTree:
    """The same without weak types, which would compile the second step of a loop anew."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, tree
    )
