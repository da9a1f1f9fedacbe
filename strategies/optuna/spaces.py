"""Optuna's distributions and our space, in both directions."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from strategies.arguments import instances
from strategies.optuna.branches import Branches
from strategies.optuna.names import Names, arrays
from strategies.optuna.parameters import to_domain
from strategies.space import Domain, SearchSpace
from strategies.space.tree import nested


def space_to_optuna(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distributions of a space, by parameter name.

    The name of a hyperparameter is its path, `"model/width"`; the entries of an array are
    `"l2.0"`, `"l2.1"`, ..., or `"l2.0.1"`. Choices that are not `None`, a bool, a number or a
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
    named `"x.0"`, `"x.1"`, ... or `"x[0]"`, ... without a gap become one array-valued float.

    **Raises:** `ValueError` naming the key if a name is no path, or nothing can be tuned.
    """
    if not isinstance(distributions, Mapping) or not all(map(_is_text, distributions)):
        raise ValueError(
            f"distributions: expected a mapping from names, received {distributions!r:.80}"
        )
    flat: dict[str, Domain] = {}
    for name, (distribution, shape, _) in arrays(distributions).items():
        try:
            flat[name] = to_domain(distribution, shape)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    return SearchSpace(nested(flat))


def _is_text(name: Any) -> bool:
    return isinstance(name, str)


def space_from_trials(trials: Iterable[FrozenTrial]) -> SearchSpace:
    """The space that a define-by-run objective has searched so far, with its conditions.

    A parameter that only some trials have is taken to exist under a condition on a discrete
    parameter that was asked for earlier in all of these trials: the condition is the one that
    explains exactly which trials have it. Entries of arrays, `"x.0"`, stay parameters of their own
    if they are conditional.

    **Arguments:**

    - `trials`: those of a study; only complete ones count, as others may have ended before they
      asked for everything.

    **Returns:** The space, for `HypergradSampler(space=...)`; with a condition it holds only for
    values of the other parameter that have been seen.

    **Raises:** `ValueError` naming the parameter whose range has changed, or whose presence no
    other parameter explains, and if there is no complete trial.
    """
    given = instances("trials", trials, FrozenTrial)
    complete = [trial for trial in given if trial.state == TrialState.COMPLETE]
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
    branches = Branches()
    for trial in complete:
        branches.add(trial)

    def refuse(name: str) -> bool:
        raise ValueError(
            f"{name!r}: expected a parameter that all trials have, or whose presence the value of "
            f"an earlier discrete parameter decides; {branches.having[name]} of {len(complete)} "
            "trials have it"
        )

    conditions = branches.asked(distributions, refuse).conditions
    always = {name: d for name, d in distributions.items() if name not in conditions}
    domains = dict(space_from_optuna(always).domains)
    for name, (parent, values) in conditions.items():
        domain = to_domain(distributions[name])
        domains[name] = replace(domain, when={**domains[parent].when, parent: values})
    return SearchSpace(nested(domains))
