"""The parameters of a space in Optuna, and the way between their values and ours."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from strategies.observation import Report
from strategies.optuna.branches import Asked
from strategies.optuna.parameters import (
    Coordinate,
    Labelled,
    Numbered,
    Parameter,
    from_distribution,
    from_domain,
)
from strategies.space import Constant, SearchSpace
from strategies.space.tree import nested


class Names:
    """The parameters of a space in Optuna, and the way between their values and ours.

    **Arguments:**

    - `space`: the space.
    - `parameters`: how its hyperparameters are stored, by path. Default: a hyperparameter's name is
      its path, and the entries of an array are `"l2.0"`, `"l2.1"`, ..., or `"l2.0.1"`.
    """

    def __init__(self, space: SearchSpace, parameters: Mapping[str, Parameter] | None = None):
        self.space = space
        self.parameters = dict(_own(space) if parameters is None else parameters)
        self.distributions: dict[str, BaseDistribution] = {}
        #: What a sampler offers: a script may still ask for an array by its former names.
        self.offered: dict[str, BaseDistribution] = {}
        self._entries: dict[str, tuple[str, int]] = {}
        for path, parameter in self.parameters.items():
            for i, name in enumerate(parameter.names):
                self.distributions[name] = parameter.distribution
                if name != path:
                    self._entries[name] = path, i
        self.offered |= self.distributions
        for parameter in self.parameters.values():
            for name in parameter.former:
                self.offered.setdefault(name, parameter.distribution)
        #: Whether a configuration changes a little on its way through Optuna.
        self.inexact = any(isinstance(p, Coordinate | Numbered) for p in self.parameters.values())

    def to_params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters of a configuration, under their former names too."""
        params: dict[str, Any] = {}
        for path, value in self.space.flatten(config).items():
            if path in self.parameters:
                parameter = self.parameters[path]
                stored = parameter.stored(value)
                for names in (parameter.former, parameter.names):
                    params.update(zip(names, stored, strict=False))
        return params

    def from_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Paths and values of the hyperparameters that the parameters determine."""
        flat: dict[str, Any] = {}
        for path, parameter in self.parameters.items():
            for names in (parameter.names, parameter.former):
                if names and all(name in params for name in names):
                    flat[path] = parameter.value([params[name] for name in names])
                    break
        return flat

    def translated(self, report: Report, flat: Mapping[str, Any]) -> Report:
        """A report in the paths of the space, from one in the names that the objective knows.

        **Arguments:**

        - `flat`: the configuration that was evaluated, by path.
        """
        labelled = [p for p, each in self.parameters.items() if isinstance(each, Labelled)]
        if not (self._entries or self.inexact or (labelled and report.config)):
            return report
        config = report.config

        def sloped(gradient: Mapping[str, Any]) -> dict[str, Any]:
            found = self._by_path(gradient)
            for path in found.keys() & self.parameters.keys() & flat.keys():
                found[path] = self.parameters[path].slope(flat[path], found[path])
            return found

        if isinstance(config, Mapping):
            config = self._by_path(config)
            for path in config.keys() & self.parameters.keys():
                parameter = self.parameters[path]
                if isinstance(parameter, Coordinate):
                    config[path] = parameter.value([config[path]])
                elif isinstance(parameter, Labelled):
                    config[path] = parameter.reported(config[path])
        return replace(report.mapped(sloped), config=config)

    def _by_path(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self.space.paths(tree):
            path, i = self._entries.get(name, (name, None))
            shape = getattr(self.space.domains.get(path), "shape", ())
            if i is None or not shape:
                found[path] = value
            else:
                array = found.setdefault(path, np.full(shape, np.nan).tolist())
                _put(array, shape, i, value)
        return found


def _put(array: list[Any], shape: tuple[int, ...], i: int, value: Any) -> None:
    *outer, last = np.unravel_index(i, shape)
    for place in outer:
        array = array[int(place)]
    array[int(last)] = value


def _own(space: SearchSpace) -> dict[str, Parameter]:
    parameters = {
        path: from_domain(path, domain)
        for path, domain in space.domains.items()
        if not isinstance(domain, Constant)
    }
    for path, parameter in parameters.items():
        others = parameters.keys() - {path}
        if parameter.former and not others.isdisjoint(parameter.names):
            # Such as an array `x` beside a number `x.0`: the brackets tell them apart.
            parameters[path] = replace(parameter, names=parameter.former, former=())
    return parameters


def names_found(asked: Asked) -> Names:
    """A space for parameters of Optuna, whatever their names and ranges.

    Equal float distributions named `"x[0]"`, `"x[1]"`, ... or `"x.0"`, ... without a gap become one
    array-valued float, if none of them has a condition. A name that cannot be a path is escaped,
    for the space only.
    """
    found: dict[str, Parameter] = {}
    for name, (distribution, shape, entries) in arrays(asked.distributions).items():
        if asked.conditions.keys() & set(entries):
            found |= {one: from_distribution(distribution, (one,), ()) for one in entries}
        else:
            found[name] = from_distribution(distribution, entries, shape)
    path = dict(zip(found, _paths(found), strict=True))
    for name, (parent, values) in asked.conditions.items():
        above = found[parent]
        when = {**above.domain.when, path[parent]: tuple(above.value([v]) for v in values)}
        found[name] = replace(found[name], domain=replace(found[name].domain, when=when))
    parameters = {path[name]: one for name, one in found.items()}
    space = SearchSpace(nested({path: one.domain for path, one in parameters.items()}))
    return Names(space, parameters)


def _paths(names: Iterable[str]) -> list[str]:
    """A path for each name: itself where that is one, beside all others."""
    taken = set(names)
    paths = []
    for name in names:
        parts = name.split("/")
        path = name
        if not all(parts) or any("/".join(parts[:i]) in taken for i in range(1, len(parts))):
            path = name.replace("%", "%25").replace("/", "%2F") or "%"
            while path in taken:
                path += "'"
            taken.add(path)
        paths.append(path)
    return paths


def arrays(
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, tuple[BaseDistribution, tuple[int, ...], tuple[str, ...]]]:
    """Names to distributions, shapes and entries, `"x.0", "x.1"` gathered to `"x"`."""
    indexed: dict[str, dict[tuple[int, ...], str]] = {}
    for name, distribution in distributions.items():
        base, index = _index(name)
        if index and isinstance(distribution, FloatDistribution):
            indexed.setdefault(base, {}).setdefault(index, name)
    found: dict[str, tuple[BaseDistribution, tuple[int, ...], tuple[str, ...]]] = {}
    for name, distribution in distributions.items():
        base, index = _index(name)
        entries = indexed.get(base, {})
        shape = _shape(entries)
        whole = (
            entries.get(index) == name
            and base not in distributions
            and shape is not None
            and all(distributions[other] == distribution for other in entries.values())
        )
        if whole and shape is not None:
            ordered = tuple(entries[i] for i in itertools.product(*map(range, shape)))
            found[base] = distribution, shape, ordered
        else:
            found[name] = distribution, (), (name,)
    return found


def _shape(indices: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of the array that has these indices, `None` if there is none."""
    known = set(indices)
    if len({len(index) for index in known}) != 1:
        return None
    shape = tuple(max(axis) + 1 for axis in zip(*known, strict=True))
    return shape if len(known) == math.prod(shape) else None


def _index(name: str) -> tuple[str, tuple[int, ...]]:
    """`"x.0.1"` and `"x[0][1]"` are `("x", (0, 1))`; anything else is itself without an index."""
    for separator, end in (("[", "]"), (".", "")):
        base, *parts = name.split(separator)
        inner = [part.removesuffix(end) for part in parts if part.endswith(end)]
        if base and parts and len(inner) == len(parts) and all(map(str.isdecimal, inner)):
            return base, tuple(map(int, inner))
    return name, ()
