"""Ray's `param_space` and our space, in both directions."""

import enum
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import sample as ray_domains

from strategies.arguments import instance
from strategies.plain import python_number
from strategies.ray.layout import Fixed, Group, Layout, Leaf, Node, Options, Row, is_plain
from strategies.space import (
    Categorical,
    Choice,
    Constant,
    Domain,
    Float,
    Int,
    Ordinal,
    SearchSpace,
)


def space_from_ray(param_space: Mapping[str, Any]) -> SearchSpace:
    """Our space from a `param_space` of Ray Tune.

    **Arguments:**

    - `param_space`: nested dict of `tune.*` domains and constants.

    **Returns:** A `SearchSpace`. Bounds follow Ray's conventions (the upper bound of `randint` is
    exclusive, that of `quniform` inclusive, that of `qrandint` inclusive unless `q = 1`). A list of
    equal float domains is one array-valued float; other lists and tuples with domains become
    groups with the positions as names. A `tune.choice` whose options hold domains becomes a
    conditional choice. Repeated options of a `tune.choice` become weights. `tune.sample_from` and
    constants that are not plain values are left out: Ray fills them in by itself.

    **Raises:** `ValueError` naming the key for what a searcher cannot express: `tune.grid_search`,
    the unbounded `tune.randn` and `tune.qrandn`, keys that are not strings or contain `/`, and a
    `param_space` with nothing to tune.
    """
    return read_layout(param_space).space


def read_layout(param_space: Mapping[str, Any], *, complete: bool = False) -> Layout:
    """`space_from_ray`, and how configurations translate.

    With `complete`, suggestions hold the constants, as they do not for Ray, which has them already.
    """
    if not isinstance(param_space, Mapping):
        raise ValueError(f"'param_space': expected a mapping, received {param_space!r:.80}")
    tree, root = _read_dict(param_space, "", complete=complete)
    return Layout(SearchSpace(tree), root)


def _read_dict(
    tree: Mapping[Any, Any], prefix: str, *, complete: bool
) -> tuple[dict[str, Any], Group]:
    ours: dict[str, Any] = {}
    nodes: dict[Any, Node] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if not _has_domains(value):
            nodes[key] = Fixed(value)
            ours.update(_constants({key: value}))
            continue
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(
                f"{path!r}: expected a key that is a non-empty string without '/', received {key!r}"
            )
        part, nodes[key] = _read(value, path, complete=complete)
        if part is not None:
            ours[key] = part
    return ours, Group(nodes, complete)


def _read(value: Any, path: str, *, complete: bool) -> tuple[Any, Node]:
    """Our domain or sub-space (`None` if there is none), and the node."""
    if not _has_domains(value):
        return None, Fixed(value)
    if isinstance(value, Mapping):
        for name in ("grid_search", "eval"):
            if len(value) == 1 and name in value:
                raise ValueError(
                    f"{path!r}: expected a domain that a searcher can sample, received "
                    f"tune.{name}; use tune.choice"
                )
        ours, group = _read_dict(value, path + "/", complete=complete)
        return ours or None, group
    if isinstance(value, list | tuple):
        array = _array(value)
        if array is not None:
            domain, shape = array
            return _float(domain, path, shape), Leaf(path)
        rows = [_read(item, f"{path}/{i}", complete=True) for i, item in enumerate(value)]
        ours = {str(i): part for i, (part, _) in enumerate(rows) if part is not None}
        return ours or None, Row([node for _, node in rows], type(value))
    if isinstance(value, ray_domains.Categorical):
        return _read_choice(value, path)
    if isinstance(value, ray_domains.Function):
        return None, Fixed(value)
    try:
        if isinstance(value, ray_domains.Float):
            return _float(value, path, ()), Leaf(path)
        if isinstance(value, ray_domains.Integer):
            return _int(value), Leaf(path)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from None
    raise ValueError(f"{path!r}: expected one of Ray's own domains, received {value!r}")


def _read_choice(value: Any, path: str) -> tuple[Any, Node]:
    if value.is_grid():
        raise ValueError(f"{path!r}: expected a domain, received a grid; use tune.choice")
    if not value.categories:
        raise ValueError(f"{path!r}: expected at least one choice, received none")
    if not any(_has_domains(option) for option in value.categories):
        options: list[Any] = []
        weights: list[int] = []
        for option in value.categories:
            for i, known in enumerate(options):
                if type(known) is type(option) and _equal(known, option):
                    weights[i] += 1
                    break
            else:
                options.append(option)
                weights.append(1)
        leaf = Leaf(path, optional=any(option is None for option in options))
        return Categorical(options, weights=weights if max(weights) > 1 else None), leaf
    alternatives: dict[str, Any] = {}
    nodes: list[Node] = []
    for i, option in enumerate(value.categories):
        if isinstance(option, Mapping) or not _has_domains(option):
            part, node = _read(option, f"{path}/{i}", complete=True)
            alternatives[str(i)] = part or {}
        else:
            part, node = _read(option, f"{path}/{i}/value", complete=True)
            alternatives[str(i)] = {"value": part}
        nodes.append(node)
    return Choice(alternatives), Options(path, nodes)


def _float(domain: Any, path: str, shape: tuple[int, ...]) -> Domain:
    sampler, step = _sampler(domain)
    if isinstance(sampler, ray_domains.Normal) or not (
        math.isfinite(domain.lower) and math.isfinite(domain.upper)
    ):
        raise ValueError(
            f"{path!r}: expected a bounded domain, received tune.randn or one without bounds; "
            "use tune.uniform"
        )
    low, high = float(domain.lower), float(domain.upper)
    if step is not None:
        low = round(_grid(low, step, math.ceil), 12)
        high = round(_grid(high, step, math.floor), 12)
    if low == high:
        return Constant(np.full(shape, low).tolist())
    return Float(low, high, log=isinstance(sampler, ray_domains.LogUniform), shape=shape, step=step)


def _int(domain: Any) -> Domain:
    sampler, step = _sampler(domain)
    low, high = int(domain.lower), int(domain.upper)
    if step is None or step == 1:
        step, high = 1, high - 1
    else:
        if step != int(step):
            raise ValueError(f"expected an integer quantum, received q={step!r}")
        step = int(step)
        low, high = -(-low // step) * step, high // step * step
    if low > high:
        raise ValueError(f"no value between {domain.lower} and {domain.upper}")
    if low == high:
        return Constant(low)
    return Int(low, high, log=isinstance(sampler, ray_domains.LogUniform), step=step)


def _sampler(domain: Any) -> tuple[Any, Any]:
    """The distribution, and the quantum if there is one."""
    sampler = domain.get_sampler()
    if isinstance(sampler, ray_domains.Quantized):
        return sampler.get_sampler(), sampler.q
    return sampler, None


def _grid(bound: float, step: float, rounding: Callable[[float], int]) -> float:
    nearest = round(bound / step)
    index = nearest if math.isclose(bound / step, nearest) else rounding(bound / step)
    return index * step


def _array(value: Sequence[Any]) -> tuple[Any, tuple[int, ...]] | None:
    """The common domain and the shape of a (nested) list of equal float domains."""
    if not value:
        return None
    parts: list[tuple[Any, tuple[int, ...]]] = []
    for item in value:
        if isinstance(item, ray_domains.Float):
            parts.append((item, ()))
        elif isinstance(item, list | tuple) and (inner := _array(item)) is not None:
            parts.append(inner)
        else:
            return None
    first, shape = parts[0]
    if any(_signature(d) != _signature(first) or s != shape for d, s in parts):
        return None
    return first, (len(parts), *shape)


def _signature(domain: Any) -> tuple[Any, ...]:
    sampler, step = _sampler(domain)
    return domain.lower, domain.upper, type(sampler), step


def _has_domains(value: Any) -> bool:
    if isinstance(value, ray_domains.Domain):
        return True
    if isinstance(value, Mapping):
        if len(value) == 1 and next(iter(value)) in ("grid_search", "eval"):
            return True
        return any(_has_domains(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_domains(item) for item in value)


def _constants(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The plain constants of a dict without domains; Ray fills in everything else by itself."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            continue
        if isinstance(value, Mapping):
            if inner := _constants(value):
                found[key] = inner
        elif is_plain(value):
            found[key] = Constant(value)
    return found


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        return a is b


def space_to_ray(space: SearchSpace) -> dict[str, Any]:
    """A `param_space` of Ray Tune from our space, for Ray's own searchers and for `tune.Tuner`.

    Arrays become (nested) lists of domains, integers have exclusive upper bounds as Ray wants them,
    and ordinals become `tune.choice`, which forgets their order. `space_from_ray` is the inverse
    but for that.

    **Raises:** `ValueError` naming the key for what Ray cannot express: conditions, weighted
    choices, and grids whose bounds are not multiples of their step. Such a space is given to
    `HypergradSearch(space=...)` itself, with no `param_space`.
    """
    instance("space", space, SearchSpace)
    return space.unflatten({path: _to_ray(path, domain) for path, domain in space.domains.items()})


def _to_ray(path: str, domain: Domain) -> Any:
    if domain.when:
        raise ValueError(
            f"{path!r}: Ray's domains cannot express conditions; "
            "give the space to HypergradSearch(space=...) with an empty param_space"
        )
    if isinstance(domain, Constant):
        return domain.value
    if isinstance(domain, Categorical):
        if domain.weights is not None:
            raise ValueError(f"{path!r}: tune.choice has no weights")
        return tune.choice(list(domain.choices))
    if isinstance(domain, Ordinal):
        return tune.choice(list(domain.values))
    if isinstance(domain, Int):
        if domain.step == 1:
            make = tune.lograndint if domain.log else tune.randint
            return make(domain.low, domain.high + 1)
        _check_grid(path, domain.low, domain.step)
        if domain.log:
            return tune.qlograndint(domain.low, domain.high, domain.step)
        return tune.qrandint(domain.low, domain.high, domain.step)
    if isinstance(domain, Float):
        return _float_to_ray(path, domain, domain.shape)
    raise ValueError(f"{path!r}: Ray has no domain for {domain}")


def _float_to_ray(path: str, domain: Float, shape: tuple[int, ...]) -> Any:
    if shape:
        return [_float_to_ray(path, domain, shape[1:]) for _ in range(shape[0])]
    if domain.step is None:
        make = tune.loguniform if domain.log else tune.uniform
        return make(domain.low, domain.high)
    _check_grid(path, domain.low, domain.step)
    high = _grid(domain.high, domain.step, math.floor)
    make = tune.qloguniform if domain.log else tune.quniform
    return make(domain.low, high, domain.step)


def _check_grid(path: str, low: float, step: float) -> None:
    if not math.isclose(low / step, round(low / step)):
        raise ValueError(
            f"{path!r}: Ray quantises to multiples of the step {step}; low = {low} is none"
        )


def encode(tree: Any) -> Any:
    """A `param_space` as JSON values: a state must not depend on pickles of Ray's classes."""
    if isinstance(tree, Mapping):
        return {"dict": [[encode(key), encode(value)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [encode(item) for item in tree]}
    if isinstance(tree, ray_domains.Categorical):
        return {"choice": [encode(item) for item in tree.categories]}
    if isinstance(tree, ray_domains.Float | ray_domains.Integer):
        sampler, step = _sampler(tree)
        kind = "float" if isinstance(tree, ray_domains.Float) else "int"
        limits = [encode(limit) for limit in (tree.lower, tree.upper)]
        log = isinstance(sampler, ray_domains.LogUniform)
        return {kind: [*limits, log, encode(step)]}
    if isinstance(tree, np.generic | np.ndarray):
        return encode(tree.tolist())
    if isinstance(tree, enum.Enum):
        name = [type(tree).__module__, type(tree).__qualname__, tree.name]
        if _member(*name) is not tree:
            raise ValueError(f"expected enumerations at the top of a module, received {tree!r}")
        return {"enum": name}
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"number": repr(tree)}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if (number := python_number(tree)) is not None:
        return number
    raise ValueError(f"expected plain values after Ray's placeholders, received {tree!r}")


def decode(tree: Any) -> Any:
    """The `param_space` that `encode` stored."""
    if not isinstance(tree, dict):
        return tree
    (kind, content), *_ = tree.items()
    if kind == "dict":
        return {decode(key): decode(value) for key, value in content}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(decode(item) for item in content)
    if kind == "choice":
        return tune.choice([decode(item) for item in content])
    if kind == "number":
        return float(content)
    if kind == "enum":
        member = _member(*content)
        if member is None:
            raise ValueError(
                f"expected an enumeration {'.'.join(content)}, in a module that is loaded already"
            )
        return member
    low, high, log, step = map(decode, content)
    domain = (ray_domains.Float if kind == "float" else ray_domains.Integer)(low, high)
    domain = domain.loguniform() if log else domain.uniform()
    return domain if step is None else domain.quantized(step)


def _member(module: str, kind: str, name: str) -> Any:
    """A member of an enumeration. Nothing is imported: a state must not run code."""
    found: Any = sys.modules.get(module)
    for part in kind.split("."):
        found = getattr(found, part, None)
    return found.__members__.get(name) if isinstance(found, enum.EnumMeta) else None
