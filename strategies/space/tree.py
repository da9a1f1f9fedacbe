"""A space as it is written, a tree of domains and choices, and the paths that it comes to."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from strategies.space.choices import Categorical, Constant
from strategies.space.domains import Domain, _fail, same

#: Under this key a configuration says which alternative was chosen.
_BRANCH = "kind"


class Choice:
    """A choice that opens its own sub-space: alternatives, each with its own hyperparameters.

    `{"model": Choice({"svm": {"C": ...}, "mlp": {"width": ...}})}` gives configurations
    `{"model": {"kind": "svm", "svm": {"C": 1.0}}}`; the alternatives that were not chosen are
    absent. Alternatives may hold further choices, to any depth.

    **Arguments:**

    - `alternatives`: mapping from a name to a (possibly empty) nested mapping of domains.
    - `default`: the alternative to start from; the first if not given.
    - `weights`: prior probabilities of the alternatives, in order.
    """

    def __init__(
        self,
        alternatives: Mapping[str, Mapping[str, Any]],
        *,
        default: str | None = None,
        weights: Sequence[float] | None = None,
    ):
        if not isinstance(alternatives, Mapping) or not alternatives:
            raise _fail("alternatives", "a mapping from names to sub-spaces", alternatives)
        if _BRANCH in alternatives:
            raise _fail("alternatives", f"names other than {_BRANCH!r}", _BRANCH)
        self.alternatives = dict(alternatives)
        self.kind = Categorical(list(alternatives), weights=weights, default=default)


def domains_of(
    tree: Mapping[str, Any], prefix: str = "", when: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[tuple[str, Domain]]:
    """Yield (path, domain) in the order of declaration, conditions of enclosing choices added."""
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise _fail(prefix + str(key), "a key that is a non-empty string without '/'", key)
        path = prefix + key
        if isinstance(value, Choice):
            kind = f"{path}/{_BRANCH}"
            yield kind, _with_conditions(value.kind, when)
            for name, branch in value.alternatives.items():
                if not isinstance(branch, Mapping):
                    raise _fail(f"{path}/{name}", "a mapping of domains", branch)
                yield from domains_of(branch, f"{path}/{name}/", {**when, kind: (name,)})
        elif isinstance(value, Domain):
            yield path, _with_conditions(value, when)
        elif isinstance(value, Mapping):
            if not value and not prefix:
                raise _fail(path, "a mapping with at least one key", value)
            yield from domains_of(value, path + "/", when)
        elif isinstance(value, list | tuple) and any(
            isinstance(item, Domain | Mapping | Choice) for item in value
        ):
            raise _fail(
                path, "a domain, a mapping or a constant (lists cannot hold domains)", value
            )
        else:
            yield path, _with_conditions(Constant(value), when)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a mapping from paths; nothing else is checked.

    **Raises:** `ValueError` naming the path that is both a leaf and a group.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *groups, name = path.split("/")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
            if not isinstance(at, dict):
                raise _fail(path, f"{group!r} to be a hyperparameter or a group", "both")
        at[name] = leaf
    return tree


def _with_conditions(domain: Domain, when: Mapping[str, Any]) -> Domain:
    if not isinstance(domain.when, Mapping):
        raise _fail("when", "a mapping from paths to values", domain.when)
    if not when and not domain.when:
        return domain
    merged: dict[str, tuple[Any, ...]] = {}
    for path, values in [*when.items(), *domain.when.items()]:
        listed = tuple(values) if isinstance(values, list | tuple) else (values,)
        if path in merged:
            listed = tuple(v for v in listed if any(same(v, w) for w in merged[path]))
        merged[path] = listed
    # A shallow copy; the frozen dataclass's other fields have been checked already.
    copy = object.__new__(type(domain))
    copy.__dict__.update(domain.__dict__)
    copy.__dict__["when"] = merged
    return copy
