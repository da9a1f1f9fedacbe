"""Optuna's distributions and our space, in both directions."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strategies.space import Categorical, Constant, Domain, Float, Int, Ordinal, SearchSpace


def space_to_optuna(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distributions of a space, by parameter name.

    The name of a hyperparameter is its path, `"model/width"`; the entries of an array are
    `"l2[0]"`, `"l2[1]"`, ..., or `"l2[0][1]"`. Choices that are not `None`, a bool, a number or a
    string are represented by their text, because Optuna's storages do not bring tuples and lists
    back as they were; ordinals become categoricals; constants have no parameter.

    **Returns:** All distributions, those of conditional hyperparameters too.

    **Raises:** `ValueError` naming the key for what Optuna cannot express: a logarithmic grid.
    """
    return Names(space).distributions


def space_from_optuna(distributions: Mapping[str, BaseDistribution]) -> SearchSpace:
    """A space from Optuna's distributions, for instance those of `FrozenTrial.distributions`.

    The inverse of `space_to_optuna` but for ordinals and conditions. Equal float distributions
    named `"x[0]"`, `"x[1]"`, ... without a gap become one array-valued float.

    **Raises:** `ValueError` naming the key if a name is no path, or nothing can be tuned.
    """
    flat: dict[str, Domain] = {}
    for name, group in _arrays(distributions).items():
        distribution, shape = group
        try:
            flat[name] = _domain(distribution, shape)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    nested: dict[str, Any] = {}
    for path, domain in flat.items():
        *groups, last = path.split("/")
        at = nested
        for group_name in groups:
            at = at.setdefault(group_name, {})
            if not isinstance(at, dict):
                raise ValueError(f"{path!r}: {group_name!r} is a hyperparameter and a group")
        at[last] = domain
    return SearchSpace(nested)


def _arrays(
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, tuple[BaseDistribution, tuple[int, ...]]]:
    """Names to distributions and shapes, `"x[0]", "x[1]"` gathered to `"x"` of shape `(2,)`."""
    indexed: dict[str, dict[tuple[int, ...], BaseDistribution]] = {}
    for name, distribution in distributions.items():
        base, index = _index(name)
        if index and isinstance(distribution, FloatDistribution):
            indexed.setdefault(base, {})[index] = distribution
    found: dict[str, tuple[BaseDistribution, tuple[int, ...]]] = {}
    for name, distribution in distributions.items():
        base, index = _index(name)
        entries = indexed.get(base, {})
        if index not in entries or base in distributions:
            found[name] = distribution, ()
            continue
        lengths = {len(i) for i in entries}
        shape = tuple(max(axis) + 1 for axis in zip(*entries, strict=False))
        if (
            len(lengths) == 1
            and set(entries) == set(itertools.product(*map(range, shape)))
            and all(d == distribution for d in entries.values())
        ):
            found[base] = distribution, shape
        else:
            found[name] = distribution, ()
    return found


def _index(name: str) -> tuple[str, tuple[int, ...]]:
    """`"x[0][1]"` is `("x", (0, 1))`; anything else is itself without an index."""
    base, *parts = name.split("[")
    if base and parts and all(part[:-1].isdecimal() and part.endswith("]") for part in parts):
        return base, tuple(int(part[:-1]) for part in parts)
    return name, ()


def _domain(distribution: BaseDistribution, shape: tuple[int, ...] = ()) -> Domain:
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(list(distribution.choices))
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        if distribution.single():
            return Constant(np.full(shape, low).tolist())
        return Float(low, high, log=distribution.log, shape=shape, step=distribution.step)
    if isinstance(distribution, IntDistribution):
        if distribution.single():
            return Constant(distribution.low)
        return Int(
            distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    raise ValueError(f"expected one of Optuna's own distributions, received {distribution!r}")


class Names:
    """The parameters of a space in Optuna, and the way between their values and ours."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.names: dict[str, list[str]] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self.choices: dict[str, list[Any]] = {}
        for path, domain in space.domains.items():
            if isinstance(domain, Constant):
                continue
            if isinstance(domain, Categorical | Ordinal):
                self.choices[path] = _labels(domain)
            distribution = self._distribution(path, domain)
            shape = domain.shape if isinstance(domain, Float) else ()
            self.names[path] = [
                path + "".join(f"[{i}]" for i in index) for index in np.ndindex(*shape)
            ]
            for name in self.names[path]:
                self.distributions[name] = distribution

    def _distribution(self, path: str, domain: Domain) -> BaseDistribution:
        if isinstance(domain, Categorical | Ordinal):
            return CategoricalDistribution(self.choices[path])
        free = None if isinstance(domain, Float) else 1
        if isinstance(domain, Float | Int) and domain.log and domain.step != free:
            raise ValueError(f"{path!r}: Optuna has no logarithmic grid; use Ordinal")
        if isinstance(domain, Float):
            return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
        if isinstance(domain, Int):
            return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
        raise ValueError(f"{path!r}: Optuna has no distribution for {domain}")

    def to_params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters of a configuration."""
        params: dict[str, Any] = {}
        for path, value in self.space.flatten(config).items():
            if path not in self.names:
                continue
            domain = self.space.domains[path]
            if isinstance(domain, Categorical | Ordinal):
                params[path] = self.choices[path][domain.index(value)]
            else:
                entries = np.ravel(value).tolist()
                params.update(zip(self.names[path], entries, strict=True))
        return params

    def from_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Paths and values of the hyperparameters that the parameters determine."""
        flat: dict[str, Any] = {}
        for path, names in self.names.items():
            if any(name not in params for name in names):
                continue
            domain = self.space.domains[path]
            if isinstance(domain, Categorical | Ordinal):
                label = Categorical(self.choices[path]).index(params[path], path)
                flat[path] = (
                    domain.choices[label]
                    if isinstance(domain, Categorical)
                    else domain.values[label]
                )
            elif isinstance(domain, Float):
                entries = np.reshape([params[name] for name in names], domain.shape)
                flat[path] = entries.tolist()
            else:
                flat[path] = params[path]
        return flat


def _labels(domain: Categorical | Ordinal) -> list[Any]:
    """What stands for each choice in Optuna: itself if every storage brings it back unchanged."""
    choices = domain.choices if isinstance(domain, Categorical) else domain.values
    labels = [
        c if c is None or isinstance(c, bool | int | float | str) else repr(c) for c in choices
    ]
    if len({repr(label) for label in labels}) < len(labels):
        labels = [f"{i}: {label}" for i, label in enumerate(labels)]
    return labels
