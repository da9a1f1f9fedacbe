"""What passes between a searcher and whoever runs the trials."""

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from strategies.arguments import mapping

if TYPE_CHECKING:
    from strategies.space import Point

Status = Literal["complete", "failed", "pruned"]


#: What an observation computes once, of its point; it is not pickled.
_DERIVED = ("slope", "size", "violation", "slopes", "constraint_slopes")

#: Of what is not NaN.
_largest = functools.partial(np.fmax.reduce, initial=0.0)


class _Located:
    """What has a configuration, and once that was checked its point in the space."""

    point: "Point | None"

    @property
    def unit(self) -> np.ndarray:
        """Unit coordinates of the configuration, shape `(space.dimension,)`, read-only.

        **Raises:** `ValueError` if the configuration was not checked.
        """
        if self.point is None:
            raise ValueError("unit: expected a configuration that was checked (SearchSpace.point)")
        return self.point.unit

    def __getstate__(self) -> dict[str, Any]:
        # A point belongs to its process; `propose` checks again what has none.
        return {k: v for k, v in self.__dict__.items() if k not in _DERIVED} | {"point": None}


@dataclass(frozen=True)
class Suggestion(_Located):
    """A configuration to try.

    - `number`: position in the search, from 0; with the seed it determines all randomness.
    - `config`: nested dict of plain Python values (lists for array-valued floats).
    - `note`: the searcher's own JSON-safe remark; it comes back with the observation.
    - `point`: the configuration as it was checked, with its unit coordinates; set by `propose`.
    """

    number: int
    config: dict[str, Any]
    note: Mapping[str, Any] = field(default_factory=dict)
    point: "Point | None" = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Observation(_Located):
    """What came of a configuration. Values are minimised; an engine's adapter flips the sign.

    - `config`: the configuration that was evaluated: the suggested one, or the one that the trial
      tuned it into.
    - `value`: the objective; NaN, infinite or `None` makes the observation `failed`.
    - `gradient`: derivative of `value` with respect to the configuration's natural values, nested
      or flat (`"a/b"`), partial: keys without a derivative are left out.
    - `gradient_error`: estimated relative error of the gradient, if known.
    - `cost`: seconds (or another unit) that the trial took.
    - `resource`: epochs, steps or samples that it was given.
    - `number`: the suggestion's number; `None` for a point that was not suggested.
    - `note`: the suggestion's note.
    - `values`: of a search with several objectives, in their order, all minimised; `value` is the
      first. One that is not finite makes the observation `failed`.
    - `gradients`: of each of `values`, or nothing.
    - `constraints`: name to value; the configuration is feasible if none is above 0. NaN is
      violated, nobody knows by how much.
    - `constraint_gradients`: of some of `constraints`, by name, each like `gradient`.
    - `point`: the configuration as it was checked, with its unit coordinates; set by whoever checks
      the observation, and always there in what a searcher's `_propose` is given.
    """

    config: Mapping[str, Any]
    value: float | None
    gradient: Mapping[str, Any] | None = None
    gradient_error: float | None = None
    cost: float | None = None
    resource: float | None = None
    status: Status = "complete"
    number: int | None = None
    note: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    gradients: tuple[Mapping[str, Any] | None, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    constraint_gradients: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    point: "Point | None" = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def slope(self) -> np.ndarray | None:
        """The gradient in unit coordinates, NaN where nothing is known; `None` if there is none.

        Read-only, computed once, of a checked observation.
        """
        return self._pulled_back(self.gradient)

    @functools.cached_property
    def slopes(self) -> tuple[np.ndarray | None, ...]:
        """`slope` of each of `values`; nothing if no gradients were reported."""
        return tuple(self._pulled_back(gradient) for gradient in self.gradients)

    @functools.cached_property
    def constraint_slopes(self) -> dict[str, np.ndarray]:
        """`slope` of each constraint that has a gradient, by name."""
        found = {n: self._pulled_back(g) for n, g in self.constraint_gradients.items()}
        return {name: slope for name, slope in found.items() if slope is not None}

    def _pulled_back(self, gradient: Mapping[str, Any] | None) -> np.ndarray | None:
        if self.point is None or not gradient:
            return None
        slope = self.point.space.pull_back(self.point, gradient)
        slope.flags.writeable = False
        return slope

    @functools.cached_property
    def violation(self) -> float:
        """The sum of what the constraints have above 0: how far from feasible this is."""
        return sum(max(c, 0.0) if c == c else math.inf for c in self.constraints.values())

    @property
    def feasible(self) -> bool:
        """Whether no constraint is violated."""
        return self.violation == 0

    @property
    def rank(self) -> tuple[float, float]:
        """The smaller, the better: the least violation first, then the smallest value."""
        if self.status == "failed" or self.value is None:
            return math.inf, math.inf
        return self.violation, self.value

    @functools.cached_property
    def size(self) -> float:
        """The largest absolute value of the values and their slopes."""
        slopes = [slope for slope in (self.slope, *self.slopes) if slope is not None]
        known = () if self.value is None or self.status == "failed" else (self.value, *self.values)
        return max(
            max(map(abs, known), default=0.0),
            max((float(_largest(np.abs(slope))) for slope in slopes), default=0.0),
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", number_of(self.value, "value"))
        if not isinstance(self.values, list | tuple):
            raise ValueError(f"'values': expected a tuple of numbers, received {self.values!r:.80}")
        if self.values:
            values = tuple(number_of(each, "values") for each in self.values)
            usable = all(each is not None and math.isfinite(each) for each in values)
            object.__setattr__(self, "values", values)
            object.__setattr__(self, "value", values[0] if usable else None)
        usable = self.value is not None and math.isfinite(self.value)
        if self.status == "complete" and not usable:
            object.__setattr__(self, "status", "failed")


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
            error = _scalar(getattr(value.info, "error", None), "gradient_error")
            gradient_error = known_error(error)
        value = value.value
    first = _scalar(value, "value")
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
        gradient_error=_scalar(gradient_error, "gradient_error"),
        config=None if config is None else plain(config),
        cost=_scalar(cost, "cost"),
        resource=_scalar(resource, "resource"),
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
        found[key] = _scalar(entry, f"{name}[{key}]"), gradient
    return found


def _named(name: str, entries: Any) -> dict[str, Any]:
    if isinstance(entries, Mapping):
        named = {str(key): entry for key, entry in entries.items()}
    elif isinstance(entries, str) or not hasattr(entries, "__len__") or np.ndim(entries) == 0:
        raise ValueError(f"{name!r}: expected a list or a mapping, received {entries!r:.80}")
    else:
        named = {str(i): entry for i, entry in enumerate(entries)}
    if not named and name == "values":
        raise ValueError("'values': expected at least one objective, received none")
    return named


def constraints_to_json(constraints: Mapping[str, float]) -> dict[str, Any]:
    """Constraints as JSON values; what is not finite as text, as JSON has no such numbers."""
    return {n: c if math.isfinite(c) else repr(float(c)) for n, c in constraints.items()}


def constraints_from_json(stored: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `constraints_to_json`."""
    return {str(name): float(entry) for name, entry in stored.items()}


def _gradients_from_json(stored: Any) -> Any:
    """`None` is "no gradient" where one would be, and NaN inside one."""
    if isinstance(stored, list):
        return [None if one is None else from_json_values(one) for one in stored]
    return from_json_values(stored)


class NoNumberError(ValueError):
    """A number was expected, and something was received that is not even an array of them."""


def number_of(value: Any, name: str) -> Any:
    """A plain Python number, or `None`, from a scalar of any library.

    **Raises:** `NoNumberError` naming it; `ValueError` for an array of numbers.
    """
    if value is None or type(value) is float:
        return value
    numeric = False
    try:
        array = np.asarray(value)
        numeric = array.dtype.kind in "iufb"
        if array.size == 1 and numeric:
            found = array.reshape(()).item()
            return float(found) if isinstance(found, bool) else found
    except (TypeError, ValueError):
        pass
    error = ValueError if numeric else NoNumberError
    raise error(f"{name!r}: expected a number, received {value!r:.80}")


def known_error(error: Any) -> Any:
    """An estimated error, `None` for NaN, which is "not known"; infinity stays, "unreliable"."""
    if error is None or is_traced(error):
        return error
    return None if math.isnan(error) else error


def is_traced(value: Any) -> bool:
    """Whether a value has no number yet, as its function is being compiled by JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _scalar(value: Any, name: str) -> Any:
    if is_traced(value):
        if value.size != 1:
            raise ValueError(f"{name!r}: expected a number, received {value.dtype}{value.shape}")
        return value.reshape(())
    return None if value is None else float(number_of(value, name))


def plain(tree: Any) -> Any:
    """Mappings, lists and plain numbers out of whatever arrays and containers a user has."""
    if isinstance(tree, Mapping):
        return {str(key): plain(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(leaf) for leaf in tree]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if is_traced(tree):
        return tree
    if hasattr(tree, "__array__"):
        array = np.asarray(tree)
        if array.dtype.kind in "iufb":
            return array.tolist()
        if array.dtype.kind == "V" or array.dtype.names:  # JAX's float0: no derivative
            return None
    return tree if not isinstance(tree, np.generic) else tree.item()


def to_json_values(tree: Any) -> Any:
    """Nested values with `None` for NaN and infinity, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {key: to_json_values(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_json_values(leaf) for leaf in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def from_json_values(tree: Any) -> Any:
    """Nested values with NaN for `None`, the inverse of `to_json_values` for gradients."""
    if isinstance(tree, Mapping):
        return {key: from_json_values(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list):
        return [from_json_values(leaf) for leaf in tree]
    return math.nan if tree is None else tree
