"""What an objective calls: its configuration, and the report of its hypergradient."""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

from strategies.arguments import instance
from strategies.observation import Report
from strategies.observation import report as _report
from strategies.optuna.names import Names
from strategies.optuna.patience import patiently
from strategies.plain import NoNumberError, python_number
from strategies.space import Constant, SearchSpace
from strategies.state import reading

#: The system attribute of a trial that holds its report; see `report_of`.
REPORT = "hypergrad:report"
#: The user attribute of a trial that sums it up on a line, for people and dashboards.
SUMMARY = "hypergrad"
#: As many characters as `optuna-dashboard` shows without growing wider than the window.
_WIDTH = 110

#: The system attribute of a trial in which Optuna has its constraints; a prefix from version 5 on.
_CONSTRAINTS = "constraints"

#: Longer values are split: MySQL keeps an attribute in a column of 64 KiB.
_CHUNK = 60_000
_PARTS = "hypergrad:parts"


def suggest(trial: BaseTrial, space: SearchSpace | Mapping[str, Any]) -> dict[str, Any]:
    """The trial's configuration: all hyperparameters of a space, asked for one by one.

    Works with every sampler of Optuna, not only with ours.

    **Arguments:**

    - `trial`: the `optuna.Trial`.
    - `space`: where to search: a `SearchSpace`, or the mapping that makes one.

    **Returns:** A nested dict of plain values, lists for arrays, constants included; the
    hyperparameters whose conditions do not hold are absent.
    """
    instance("trial", trial, BaseTrial)
    space = SearchSpace.of(space)
    names, given = Names(space), _given(trial)
    flat: dict[str, Any] = {}
    waiting = list(space.domains)
    while waiting:
        path = next(p for p in waiting if not any(q in waiting for q in space.domains[p].when))
        waiting.remove(path)
        if not space.is_active(path, flat):
            continue
        domain = space.domains[path]
        if isinstance(domain, Constant):
            flat[path] = domain.value
            continue
        parameter = names.parameters[path]
        asked = parameter.names if given.isdisjoint(parameter.former) else parameter.former
        ask = partial(_ask, trial, distribution=parameter.distribution)
        flat[path] = parameter.value([patiently(partial(ask, name)) for name in asked])
    return space.validate(flat)


def _given(trial: BaseTrial) -> set[str]:
    """The names of values that a trial comes with: enqueued or fixed ones, or all if it ended."""
    if isinstance(trial, FrozenTrial):
        return set(trial.params)
    return set(getattr(trial, "_fixed_params", None) or getattr(trial, "_params", None) or ())


def _ask(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def report(trial: BaseTrial, value: Any = None, gradient: Any = None, **details: Any) -> Any:
    """Hand a trial's hypergradient over, and return the value for the objective to return.

    Stored with the trial: plain JSON data, in several attributes if it is long, which `report_of`
    reads; and summed up on a line for people, as the user attribute `hypergrad`. Without a gradient
    the trial still counts.

    **Arguments:**

    - `trial`: the `optuna.Trial`.
    - `value`: the objective, a scalar; or a `hypergrad.Hypergradient`, which brings its gradient
      and its residuals along; or a `strategies.Report`.
    - `gradient`: derivative of `value` with respect to the hyperparameters' natural values, keyed
      by their names, nested or flat, partial.
    - `gradient_error`, `config`, `cost`, `resource`, `info`, `values`, `gradients`, `constraints`,
      `constraint_gradients`: as in `strategies.report`. The searcher takes the trial's duration in
      seconds for the cost if it is not given. Constraints are constraints of the trial, as by
      `trial.set_constraint`; those set so need not be given again, but may have gradients here.

    **Returns:** The value as a float. NaN, which Optuna takes for a failure, if there is none, or
    with a warning something that is no number. Of several objectives, a tuple.

    **Raises:** `ValueError` if the value is an array, or the gradient not a mapping.
    """
    instance("trial", trial, BaseTrial)
    try:
        given = _report(value, gradient, **details)
    except NoNumberError as error:
        warnings.warn(f"trial {trial.number} failed: {error}", stacklevel=2)
        return math.nan
    keep_report(trial, given)
    return returned(given)


def returned(given: Report) -> Any:
    """What an objective of Optuna returns for a report."""
    if given.values is not None:
        return tuple(math.nan if each is None else each for each in given.values)
    return math.nan if given.value is None else given.value


def keep_report(trial: BaseTrial, given: Report) -> None:
    """Store a report with a running trial.

    What a storage does not take, even after a while, is left out with a warning: the value of a
    trial must not be lost with its gradient.

    **Raises:** `StorageInternalError` if that would make a trial feasible which is not.
    """
    try:
        patiently(lambda: _store_report(trial, given))
    except StorageInternalError as error:
        if given.constraints:
            raise
        warnings.warn(
            f"trial {trial.number}: the storage did not take the report, and only the value "
            f"counts ({error.__cause__ or error!r:.200})",
            stacklevel=3,
        )


def _store_report(trial: BaseTrial, given: Report) -> None:
    if isinstance(trial, Trial):  # a `FixedTrial` has no storage
        storage, number = trial.storage, trial._trial_id
        write_attribute(
            given.to_json(),
            REPORT,
            lambda key, part: storage.set_trial_system_attr(number, key, part),
        )
        known = constraints_of(storage.get_trial(trial._trial_id))
        for key, part in constraint_attributes(given.constraints or {}, known).items():
            storage.set_trial_system_attr(trial._trial_id, key, part)
    trial.set_user_attr(SUMMARY, _summary(given))


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """What `trial.set_constraint`, or a `constraints_func`, has said of a trial.

    What is damaged is NaN: violated, nobody knows by how much.
    """
    try:
        found = getattr(trial, "constraints", None)
        if found is None:  # before version 5 there was a list of them
            found = dict(enumerate(trial.system_attrs.get(_CONSTRAINTS) or ()))
    except TypeError:
        return {_CONSTRAINTS: math.nan}
    known = {str(name): python_number(each) for name, each in found.items()}
    return {name: math.nan if each is None else float(each) for name, each in known.items()}


def constraint_attributes(
    constraints: Mapping[str, float], known: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Any]:
    """Constraints as the system attributes in which Optuna has them, without those it knows."""
    # Optuna has no NaN there, which is violated.
    new = {
        name: math.inf if math.isnan(each) else each
        for name, each in constraints.items()
        if name not in known
    }
    if not new or hasattr(FrozenTrial, "constraints"):
        return {f"{_CONSTRAINTS}:{name}": each for name, each in new.items()}
    return {_CONSTRAINTS: [*known.values(), *new.values()]}


def _summary(given: Report) -> str:
    """What is worth seeing at a glance, on one line that a page can show."""
    parts = []
    if given.gradient:
        parts.append(f"gradient norm {_brief([e for _, e in _leaves(given.gradient)])}")
    if given.gradient_error is not None:
        parts.append(f"its error {given.gradient_error:.3g}")
    parts += [f"{name} {each:.3g}" for name, each in (given.constraints or {}).items()]
    if given.config:
        parts.append(f"tuned {', '.join(given.config)}")
    parts += [f"{path} {_brief(entries)}" for path, entries in _leaves(given.info)]
    if given.cost is not None:
        parts.append(f"cost {given.cost:.4g}")
    text = ", ".join(parts) or "no gradient"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, leaf in tree.items():
        if isinstance(leaf, Mapping):
            yield from _leaves(leaf, f"{prefix}{key}/")
        elif leaf is not None:
            yield f"{prefix}{key}", leaf


def _brief(entries: Any) -> str:
    """A number with few digits, the norm of several, the beginning of anything else."""
    try:
        flat = np.concatenate([np.asarray(entry, float).ravel() for entry in _listed(entries)])
    except (TypeError, ValueError):
        return f"{entries!s:.20}"
    return f"{flat[0] if flat.size == 1 else np.linalg.norm(flat):.3g}"


def _listed(entries: Any) -> list[Any]:
    return entries if isinstance(entries, list) and entries else [entries]


def objective(
    function: Callable[[dict[str, Any]], Any], space: SearchSpace
) -> Callable[[Any], Any]:
    """An objective of Optuna from one of the embedded engine.

    **Arguments:**

    - `function`: takes a configuration and returns a number, a `hypergrad.Hypergradient` or a
      `strategies.Report`; for instance a `strategies.lamarckian.LamarckianTrial`.
    - `space`: the space of its configurations.

    **Returns:** What `Study.optimize` takes.
    """

    def evaluate(trial: BaseTrial) -> Any:
        return report(trial, function(suggest(trial, space)))

    return evaluate


def report_of(trial: FrozenTrial) -> Report:
    """What a finished trial reported: its value, and the hypergradient if there was one.

    **Arguments:**

    - `trial`: one of `study.trials`.

    **Returns:** The report, in the direction of the study; of a pruned trial, that of its last
    step.

    **Raises:** `ValueError` if what is stored is damaged.
    """
    plain = result_of(instance("trial", trial, FrozenTrial))
    try:
        with reading():
            stored = read_attribute(REPORT, trial.system_attrs)
            given = Report(None) if stored is None else Report.from_json(stored)
    except ValueError as error:
        raise ValueError(f"trial {trial.number}: {REPORT!r}: {error}") from None
    constraints = constraints_of(trial)
    return Report(
        value=plain.value,
        # The gradient belongs to the value that it was reported with.
        gradient=given.gradient if plain.value == given.value else None,
        values=plain.values,
        gradients=given.gradients if plain.values == given.values else None,
        # What was NaN is infinite for Optuna.
        constraints={**constraints, **(given.constraints or {})} or None,
        constraint_gradients=given.constraint_gradients,
        gradient_error=given.gradient_error,
        config=given.config,
        cost=plain.cost if given.cost is None else given.cost,
        resource=plain.resource if given.resource is None else given.resource,
        info=given.info,
    )


def result_of(trial: FrozenTrial) -> Report:
    """What Optuna itself knows of a finished trial: values, constraints, seconds, the last step."""
    value, values = None, None
    if trial.state == TrialState.COMPLETE and trial.values is not None:
        value = trial.values[0]
        values = list(trial.values) if len(trial.values) > 1 else None
    elif trial.state == TrialState.PRUNED and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
    start, end = trial.datetime_start, trial.datetime_complete
    seconds = (end - start).total_seconds() if start and end else None
    constraints = constraints_of(trial) or None
    return Report(
        value, cost=seconds, resource=trial.last_step, values=values, constraints=constraints
    )


def write_attribute(content: Any, key: str, put: Callable[[str, Any], None]) -> None:
    """Store JSON data as an attribute, or as several if it is long."""
    text = json.dumps(content)
    if len(text) <= _CHUNK:
        put(key, content)
        return
    starts = range(0, len(text), _CHUNK)
    for i, start in enumerate(starts):
        put(f"{key}:{i}", text[start : start + _CHUNK])
    # Last: whoever reads it finds all parts, and none of an earlier, longer report.
    put(key, {_PARTS: len(starts)})


def read_attribute(key: str, attributes: Mapping[str, Any]) -> Any:
    """What `write_attribute` stored, `None` if there is nothing."""
    stored = attributes.get(key)
    if not (isinstance(stored, Mapping) and _PARTS in stored):
        return stored
    return json.loads("".join(attributes[f"{key}:{i}"] for i in range(stored[_PARTS])))
