"""What a trial reports, whatever the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from strategies.arguments import mapping
from strategies.plain import (
    constraints_from_json,
    constraints_to_json,
    from_json_values,
    known_error,
    plain,
    scalar,
    shown,
    to_json_values,
)


@dataclass(frozen=True)
class Report:
    """One trial's result: plain Python numbers and lists only, safe for JSON.

    The fields are those of `strategies.observation.Observation`, in the user's own orientation
    (the engine knows whether a metric is minimised; constraints have no orientation); `info` holds
    further numbers, such as the residuals behind a hypergradient.
    """

    value: float | None
    gradient: Mapping[str, Any] | None = None
    gradient_error: float | None = None
    config: Mapping[str, Any] | None = None
    cost: float | None = None
    resource: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    values: Sequence[float | None] | None = None
    gradients: Sequence[Mapping[str, Any] | None] | None = None
    constraints: Mapping[str, float] | None = None
    constraint_gradients: Mapping[str, Mapping[str, Any]] | None = None

    def mapped(self, function: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> "Report":
        """The report with a function applied to each of its gradients."""

        def each(gradient: Any) -> Any:
            return function(gradient) if isinstance(gradient, Mapping) else gradient

        constraints = self.constraint_gradients
        return replace(
            self,
            gradient=each(self.gradient),
            gradients=self.gradients and [each(gradient) for gradient in self.gradients],
            constraint_gradients=constraints and {n: each(g) for n, g in constraints.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values without NaN or infinity (they become `None`)."""
        stored = {
            name: to_json_values(value)
            for name, value in self.__dict__.items()
            if value is not None
        }
        stored["value"] = to_json_values(self.value)
        for name, tree in (("info", self.info), ("config", self.config)):
            if tree:
                stored[name] = to_json_values(shown(tree))
        if self.gradient_error is not None:
            # Infinity, a gradient known to be unreliable, has no JSON number.
            stored["gradient_error"] = repr(self.gradient_error)
        if self.constraints is not None:
            stored["constraints"] = constraints_to_json(self.constraints)
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Report":
        """The report that `to_json` stored; `None` inside a gradient is NaN again."""
        fields = dict(stored)
        for name in ("gradient", "gradients", "constraint_gradients"):
            if fields.get(name) is not None:
                fields[name] = _gradients_from_json(fields[name])
        if fields.get("gradient_error") is not None:
            fields["gradient_error"] = float(fields["gradient_error"])
        if fields.get("constraints") is not None:
            fields["constraints"] = constraints_from_json(fields["constraints"])
        return cls(**fields)


def report(
    value: Any = None,
    gradient: Any = None,
    *,
    gradient_error: Any = None,
    config: Mapping[str, Any] | None = None,
    cost: Any = None,
    resource: Any = None,
    info: Mapping[str, Any] | None = None,
    values: Any = None,
    gradients: Any = None,
    constraints: Any = None,
    constraint_gradients: Any = None,
) -> Report:
    """A trial's result from arrays of any library.

    **Arguments:**

    - `value`: the objective, a scalar; or a `hypergrad.Hypergradient`, which brings its gradient,
      its error estimate and its residuals along; or a `Report`, which is returned as it is.
    - `gradient`: derivative of `value` with respect to the configuration's natural values: a
      mapping keyed like the configuration, nested or flat, partial. `None` leaves and missing keys
      mean "no derivative". A gradient given beside a `Hypergradient` replaces its `grad`, for
      hyperparameters that are not themselves a mapping keyed like the configuration.
    - `gradient_error`: estimated relative error of the gradient.
    - `config`: the configuration that the trial tuned itself into, if it did.
    - `cost`: what the trial cost, in seconds or another unit.
    - `resource`: the epochs, steps or samples it was given.
    - `info`: further numbers to keep with the trial.
    - `values`: in place of `value`, several objectives, always in the same order; each a scalar or
      a `hypergrad.Hypergradient`.
    - `gradients`: of `values`, one for each, `None` where there is none.
    - `constraints`: what must not be above 0: a mapping of names to scalars or Hypergradients, or a
      list of them, whose names are `"0"`, `"1"` and so on.
    - `constraint_gradients`: of some of them, keyed alike, each like `gradient`.

    Inside a function that JAX traces the report holds traced arrays (see `minimize(population=)`).

    **Raises:** `ValueError` if `value` is not a scalar or the gradient is not a mapping, or if both
    `value` and `values` are given.
    """
    if isinstance(value, Report):
        others = (gradient, gradient_error, config, cost, resource, info, values, gradients)
        if any(one is not None for one in (*others, constraints, constraint_gradients)):
            raise ValueError("'value': expected a number beside other arguments, received a Report")
        return value
    details = mapping("info", info, "numbers by name")
    if _is_hypergradient(value):
        for name in getattr(value.info, "__dataclass_fields__", {}):
            # An outcome is told by its two flags, which are plain.
            for each in ("nonpositive_curvature", "breakdown") if name == "outcome" else (name,):
                details.setdefault(each, getattr(value.info, each))
        gradient = value.grad if gradient is None else gradient
        if gradient_error is None:
            error = scalar(getattr(value.info, "error", None), "gradient_error")
            gradient_error = known_error(error)
        value = value.value
    first = scalar(value, "value")
    several: dict[str, Any] = {}
    if values is not None:
        if value is not None or gradient is not None:
            raise ValueError("'values': expected nothing beside 'value', received both")
        pairs = _with_gradients("values", values, "gradients", gradients)
        several["values"] = [number for number, _ in pairs.values()]
        if any(slope is not None for _, slope in pairs.values()):
            several["gradients"] = [slope for _, slope in pairs.values()]
        first = several["values"][0]
    if constraints is not None:
        pairs = _with_gradients(
            "constraints", constraints, "constraint_gradients", constraint_gradients
        )
        several["constraints"] = {
            name: math.nan if number is None else number for name, (number, _) in pairs.items()
        }
        slopes = {name: slope for name, (_, slope) in pairs.items() if slope is not None}
        if slopes:
            several["constraint_gradients"] = slopes
    return Report(
        value=first,
        gradient=_mapping(gradient, "gradient"),
        gradient_error=scalar(gradient_error, "gradient_error"),
        config=None if config is None else plain(config),
        cost=scalar(cost, "cost"),
        resource=scalar(resource, "resource"),
        info=plain(details),
        **several,
    )


def _is_hypergradient(value: Any) -> bool:
    return hasattr(value, "grad") and hasattr(value, "info") and hasattr(value, "value")


def _mapping(gradient: Any, name: str) -> Any:
    if gradient is not None and not isinstance(gradient, Mapping):
        raise ValueError(
            f"{name!r}: expected a mapping keyed like the configuration, "
            f"received {type(gradient).__name__}"
        )
    return None if gradient is None else plain(gradient)


def _with_gradients(
    name: str, entries: Any, gradient_name: str, gradients: Any
) -> dict[str, tuple[float | None, Any]]:
    """Numbers and gradients by name; the names of a list are its positions."""
    named = _named(name, entries)
    given = {} if gradients is None else _named(gradient_name, gradients)
    for key in given:
        if key not in named:
            raise ValueError(f"{gradient_name!r}: expected one of {list(named)}, received {key!r}")
    found = {}
    for key, entry in named.items():
        gradient = given.get(key)
        if _is_hypergradient(entry):
            gradient = entry.grad if gradient is None else gradient
            entry = entry.value
        gradient = _mapping(gradient, f"{gradient_name}[{key}]")
        found[key] = scalar(entry, f"{name}[{key}]"), gradient
    return found


def _named(name: str, entries: Any) -> dict[str, Any]:
    if isinstance(entries, Mapping):
        named = {str(key): entry for key, entry in entries.items()}
    elif isinstance(entries, str) or not hasattr(entries, "__len__") or _has_no_axis(entries):
        raise ValueError(f"{name!r}: expected a list or a mapping, received {entries!r:.80}")
    else:
        named = {str(i): entry for i, entry in enumerate(entries)}
    if not named and name == "values":
        raise ValueError("'values': expected at least one objective, received none")
    return named


def _has_no_axis(entries: Any) -> bool:
    # NumPy makes no array of a list of JAX's numbers in half precision.
    return not isinstance(entries, list | tuple) and np.ndim(entries) == 0


def _gradients_from_json(stored: Any) -> Any:
    """`None` is "no gradient" where one would be, and NaN inside one."""
    if isinstance(stored, list):
        return [None if one is None else from_json_values(one) for one in stored]
    return from_json_values(stored)
