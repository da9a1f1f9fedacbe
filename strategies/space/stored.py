"""Configurations and spaces as JSON values, and back."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from strategies.space.choices import Categorical, Constant, Listed, Ordinal
from strategies.space.domains import Domain, _fail, same
from strategies.space.logit import Logit
from strategies.space.numeric import Float, Int
from strategies.space.structured import Ordered, Simplex
from strategies.space.tree import nested

if TYPE_CHECKING:
    from strategies.space.point import Point
    from strategies.space.search_space import SearchSpace

_KINDS: tuple[type[Domain], ...] = (
    Float,
    Int,
    Logit,
    Categorical,
    Ordinal,
    Constant,
    Simplex,
    Ordered,
)


def config_to_json(space: "SearchSpace", config: "Mapping[str, Any] | Point") -> dict[str, Any]:
    """See `SearchSpace.to_json`."""
    stored = {}
    for path, value in space.flatten(config).items():
        domain = space.domains[path]
        if isinstance(domain, Constant):
            continue
        if isinstance(domain, Listed) and not _returns(value):
            value = {"choice": domain.index(value)}
        stored[path] = value
    return stored


def flat_from_json(space: "SearchSpace", stored: Mapping[str, Any]) -> dict[str, Any]:
    """Paths to the values that `config_to_json` stored; they are not checked."""
    if not isinstance(stored, Mapping):
        raise _fail("config", "a mapping", stored)
    flat: dict[str, Any] = {}
    for path, value in stored.items():
        domain = space.domains.get(path)
        if isinstance(domain, Listed) and isinstance(value, Mapping):
            place = value.get("choice")
            if type(place) is not int or not 0 <= place < len(domain.options):
                raise _fail(path, f"the position of one of {len(domain.options)} choices", value)
            value = domain.options[place]
        flat[path] = value
    return flat


def space_to_dict(space: "SearchSpace") -> dict[str, Any]:
    """See `SearchSpace.to_dict`."""
    if space.constraints:
        raise _fail("constraints", "none, as JSON cannot hold predicates", [*space.constraints])
    stored: dict[str, Any] = {}
    for path, domain in space.domains.items():
        entry: dict[str, Any] = {"kind": domain.kind}
        for item in fields(domain):
            value = getattr(domain, item.name)
            if item.name == "when":
                value = {parent: list(values) for parent, values in value.items()}
            if same(value, item.default) or (item.name == "when" and not value):
                continue
            if item.name in ("choices", "values", "shape", "weights"):
                value = list(value)
            if not _jsonable(value):
                raise _fail(f"{path} {item.name}", "values that JSON can hold", value)
            entry[item.name] = value
        stored[path] = entry
    return stored


def tree_from_dict(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tree of the space that `space_to_dict` stored."""
    kinds = {kind.kind: kind for kind in _KINDS}
    flat: dict[str, Domain] = {}
    for path, entry in stored.items() if isinstance(stored, Mapping) else [("space", stored)]:
        if not isinstance(path, str) or not isinstance(entry, Mapping):
            raise _fail(str(path), "a mapping with a kind", entry)
        arguments = {name: value for name, value in entry.items() if name != "kind"}
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise _fail(f"{path} kind", f"one of {sorted(kinds)}", kind)
        known = {item.name for item in fields(kinds[kind])}
        if not arguments.keys() <= known:
            raise _fail(path, f"options of {sorted(known)}", sorted(map(str, arguments)))
        needed = {item.name for item in fields(kinds[kind]) if _is_needed(item)}
        if not needed <= arguments.keys():
            raise _fail(path, f"the options {sorted(needed)}", sorted(arguments))
        flat[path] = kinds[kind](**arguments)
    return nested(flat)


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _jsonable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _jsonable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_jsonable(item) for item in value)
    return _plain(value) and value == value


def _returns(value: Any) -> bool:
    """Whether JSON brings a choice back as it was: no NaN or infinity, and no enumeration."""
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
