"""Optuna's distributions and our space, in both directions."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

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
    if not isinstance(space, SearchSpace):
        raise ValueError(f"space: expected a SearchSpace, received {space!r:.80}")
    return Names(space).distributions


def space_from_optuna(distributions: Mapping[str, BaseDistribution]) -> SearchSpace:
    """A space from Optuna's distributions, for instance those of `FrozenTrial.distributions`.

    The inverse of `space_to_optuna` but for ordinals and conditions. Equal float distributions
    named `"x[0]"`, `"x[1]"`, ... without a gap become one array-valued float.

    **Raises:** `ValueError` naming the key if a name is no path, or nothing can be tuned.
    """
    if not isinstance(distributions, Mapping) or not all(map(_is_text, distributions)):
        raise ValueError(
            f"distributions: expected a mapping from names, received {distributions!r:.80}"
        )
    flat: dict[str, Domain] = {}
    for name, group in _arrays(distributions).items():
        distribution, shape = group
        try:
            flat[name] = _domain(distribution, shape)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    return SearchSpace(_nested(flat))


def _is_text(name: Any) -> bool:
    return isinstance(name, str)


def _nested(flat: Mapping[str, Domain]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, domain in flat.items():
        *groups, last = path.split("/")
        at = nested
        for group_name in groups:
            at = at.setdefault(group_name, {})
            if not isinstance(at, dict):
                raise ValueError(f"{path!r}: {group_name!r} is a hyperparameter and a group")
        at[last] = domain
    return nested


def space_from_trials(trials: Iterable[FrozenTrial]) -> SearchSpace:
    """The space that a define-by-run objective has searched so far, with its conditions.

    A parameter that only some trials have is taken to exist under a condition on a discrete
    parameter that was asked for earlier in all of these trials: the condition is the one that
    explains exactly which trials have it. Entries of arrays, `"x[0]"`, stay parameters of their own
    if they are conditional.

    **Arguments:**

    - `trials`: those of a study; only complete ones count, as others may have ended before they
      asked for everything.

    **Returns:** The space, for `HypergradSampler(space=...)`; with a condition it holds only for
    values of the other parameter that have been seen.

    **Raises:** `ValueError` naming the parameter whose range has changed, or whose presence no
    other parameter explains, and if there is no complete trial.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError("trials: expected at least one complete trial, received none")
    distributions: dict[str, BaseDistribution] = {}
    for trial in complete:
        for name, distribution in trial.distributions.items():
            if distributions.setdefault(name, distribution) != distribution:
                raise ValueError(
                    f"{name!r}: expected one range in all trials, received "
                    f"{distributions[name]} and {distribution}"
                )
    conditions = {
        name: _explained(name, complete, distributions)
        for name in distributions
        if not all(name in trial.params for trial in complete)
    }
    always = {name: d for name, d in distributions.items() if name not in conditions}
    domains = dict(space_from_optuna(always).domains)
    for name, (parent, values) in conditions.items():
        domain = _domain(distributions[name])
        domains[name] = replace(domain, when={**domains[parent].when, parent: values})
    return SearchSpace(_nested(domains))


def _explained(
    name: str, trials: list[FrozenTrial], distributions: Mapping[str, BaseDistribution]
) -> tuple[str, tuple[Any, ...]]:
    """The discrete parameter whose value decides whether another one is asked for."""
    having = [trial for trial in trials if name in trial.params]
    # The nearest one first: in nested conditions it is the innermost that decides.
    before = list(having[0].params)[: list(having[0].params).index(name)][::-1]
    for parent in before:
        if isinstance(distributions[parent], FloatDistribution):
            continue
        if not all(parent in trial.params for trial in having):
            continue
        with_it = {repr(t.params[parent]): t.params[parent] for t in having}
        without = {repr(t.params[parent]) for t in trials if parent in t.params and t not in having}
        if not without & with_it.keys():
            return parent, tuple(with_it.values())
    raise ValueError(
        f"{name!r}: expected a parameter that all trials have, or whose presence the value of an "
        f"earlier discrete parameter decides; {len(having)} of {len(trials)} trials have it"
    )


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
