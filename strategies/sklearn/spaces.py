"""The searched space: from grids, distributions or a `SearchSpace`, penalties widened to arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats.distributions import rv_frozen

from strategies.space import Categorical, Choice, Constant, Domain, Float, Ordinal, SearchSpace
from strategies.space.sklearn import sklearn_params, space_from_sklearn

# A grid whose ends are so many times apart means a logarithmic range.
_LOGARITHMIC = 10.0


def space_of(params: Any) -> SearchSpace:
    """A `SearchSpace` from itself, a mapping of domains, a grid, a list of grids, distributions."""
    if isinstance(params, SearchSpace):
        return params
    if isinstance(params, Mapping) and any(
        isinstance(v, Domain | Choice | Mapping) for v in params.values()
    ):
        # Beside domains a list is what it is in a grid: values to choose from.
        grids = {n: v for n, v in params.items() if isinstance(v, list | np.ndarray | rv_frozen)}
        return SearchSpace({**params, **(space_from_sklearn(grids).domains if grids else {})})
    return space_from_sklearn(params)


Objects = dict[str, dict[str, Any]]


def without_objects(params: Any) -> tuple[Any, Objects]:
    """A grid, or list of grids, whose estimators and functions are replaced by labels.

    **Returns:** the grid, and by the parameter's name what each label stands for.
    """
    if isinstance(params, Sequence) and not isinstance(params, str):
        parts = [without_objects(grid) for grid in params]
        objects: Objects = {}
        for _, found in parts:
            for name, labels in found.items():
                objects.setdefault(name, {}).update(labels)
        return [grid for grid, _ in parts], objects
    if not isinstance(params, Mapping):
        return params, {}
    plain, objects = dict(params), {}
    for name, values in params.items():
        if isinstance(values, list | tuple) and not all(_is_plain(value) for value in values):
            labels = {f"{number}: {value!r}": value for number, value in enumerate(values)}
            plain[name], objects[name] = list(labels), labels
    return plain, objects


def is_single(params: Any) -> bool:
    """Whether a grid has one value for each parameter."""
    return isinstance(params, Mapping) and all(
        isinstance(values, list | tuple | np.ndarray) and len(values) == 1
        for values in params.values()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    # An enumeration is none, though its members may be numbers: JSON makes others of them.
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, np.generic)


def names_of(space: SearchSpace) -> frozenset[str]:
    """Names of the parameters that appear in some configuration, as `set_params` has them."""
    return frozenset(name_of(path) for path in space.domains if not _is_kind(path, space))


def name_of(path: str) -> str:
    """The parameter's name of a path of the space."""
    parts = path.split("/")
    return "__".join(parts[2:] if parts[0] == "grids" and len(parts) > 2 else parts)


def _is_kind(path: str, space: SearchSpace) -> bool:
    return path == "grids/kind" and isinstance(space.domains[path], Categorical | Constant)


def tuned(
    space: SearchSpace,
    differentiable: Sequence[str],
    widened: str | None = None,
    shape: tuple[int, ...] = (),
) -> SearchSpace:
    """The space in which hypergradients can be followed.

    A grid of numbers for a differentiable parameter becomes the range between its ends, logarithmic
    if they are far apart; an `Ordinal` of a `SearchSpace` is a grid as well. The parameter
    `widened` gets the shape.

    **Raises:** `ValueError` if what is to be widened is no range of numbers.
    """
    domains: dict[str, Domain] = {}
    for path, domain in space.domains.items():
        name = name_of(path)
        if name in differentiable:
            domain = _range(domain)
        if name == widened:
            if not isinstance(domain, Float) or domain.shape:
                raise ValueError(
                    f"{name!r}: expected a range of numbers, to have one for each feature or group,"
                    f" received {domain}"
                )
            domain = Float(
                domain.low,
                domain.high,
                log=domain.log,
                shape=shape,
                default=domain.default,
                spread=domain.spread,
                when=domain.when,
            )
        domains[path] = domain
    return SearchSpace(space.unflatten(domains), constraints=space.constraints)


def _range(domain: Domain) -> Domain:
    values: Any = ()
    if isinstance(domain, Ordinal):
        values = domain.values
    elif isinstance(domain, Categorical):
        values = domain.choices
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or len(numbers) < 2 or not np.all(np.isfinite(numbers)):
        return domain
    low, high = float(min(numbers)), float(max(numbers))
    log = low > 0 and high / low >= _LOGARITHMIC
    return Float(low, high, log=log, when=domain.when)


def params_of(config: Mapping[str, Any], objects: Objects) -> dict[str, Any]:
    """What `set_params` takes, from a configuration of the space."""
    return {
        name: objects[name].get(value, value) if name in objects else value
        for name, value in sklearn_params(dict(config)).items()
    }
