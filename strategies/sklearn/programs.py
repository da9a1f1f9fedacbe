"""Compiled programs of all folds, kept over searches: the same model is compiled once a process.

Numbers that are searched are arguments of a program; whatever else an estimator's parameters say is
built into it. Programs hold no data.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from strategies.sklearn.models import Fold, Model, Task
from strategies.sklearn.models.base import Measure, Response

# Programs that are kept.
_KEPT = 64
# Up to so many entries a program is compiled without optimising its loops: in half of the time.
_FEW = 1_000_000
_programs: OrderedDict[Hashable, Callable] = OrderedDict()
_lock = Lock()


def program_of(
    model: Model,
    task: Task,
    given: frozenset[str],
    criterion: Any,
    measure: Measure,
    axes: Fold,
    entries: int,
) -> Callable:
    """The compiled criterion of all folds, with the derivative of its mean.

    **Arguments:**

    - `model`, `task`: what is trained.
    - `given`: the hyperparameters that it is a function of. What is searched may be inactive in a
      configuration; the estimator's own value of it is built in then.
    - `criterion`: a name or a function, for which `measure` stands.
    - `axes`: what `vmap` has to know of folds.
    - `entries`: of the features, times outputs and folds.

    **Returns:** a function of hyperparameters, folds, and the group of every column or `None`.
    """
    quickly = entries <= _FEW
    key = _key(model, task, given, criterion, axes, quickly)
    with _lock:
        known = _programs.get(key)
        if known is not None:
            _programs.move_to_end(key)
            return known
        made = _program(model, measure, axes, quickly)
        if key is not None:
            _programs[key] = made
            if len(_programs) > _KEPT:
                _programs.popitem(last=False)
        return made


def _key(
    model: Model, task: Task, given: frozenset[str], criterion: Any, axes: Fold, quickly: bool
) -> Hashable:
    """What a program depends on besides shapes; `None` where that cannot be told."""
    estimator = model.estimator
    fixed = {k: v for k, v in estimator.get_params().items() if k not in given}
    try:
        described = pickle.dumps(sorted(fixed.items()))
        hash(criterion)
    except Exception:  # whatever a parameter's own pickling raises
        return None
    return type(estimator), described, task, given, criterion, axes.x, quickly


def _program(model: Model, measure: Measure, axes: Fold, quickly: bool) -> Callable:
    name = model.per_feature or ""

    def mean(h: dict[str, Array], folds: Fold, index: Array | None) -> Response:
        wide = h if index is None else {**h, name: h[name][index]}
        each = jax.vmap(lambda fold: model.respond(wide, fold, measure), in_axes=(axes,))(folds)
        gradient = {key: jnp.mean(part, axis=0) for key, part in each.gradient.items()}
        if index is not None:
            summed = jnp.zeros_like(h[name]).at[index].add(gradient[name])
            gradient = {**gradient, name: summed}
        return Response(each.value, gradient, jnp.max(each.residual), each.params)

    # Few numbers: compiling takes longer than what optimised loops save in all trials.
    options = {"xla_backend_optimization_level": 0} if quickly else {}
    return jax.jit(mean, compiler_options=options)
