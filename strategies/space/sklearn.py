"""scikit-learn's parameter grids and distributions and our space, in both directions.

A parameter of scikit-learn has a name, `"svc__C"`, and a list of values or a distribution of
`scipy.stats`; a list of such dicts means that one of them is chosen. Nothing of scikit-learn is
imported here: its spaces are made of dicts, lists and SciPy's distributions.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from strategies.space.choices import Categorical, Constant, Ordinal
from strategies.space.combinations import assignments
from strategies.space.domains import Domain, _fail, same
from strategies.space.numeric import Float, Int
from strategies.space.search_space import Config, SearchSpace
from strategies.space.tree import Choice

#: The name of the choice between the dicts of a list.
_GRIDS = "grids"
_LIMIT = 1000


def space_from_sklearn(params: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> SearchSpace:
    """A space from what `GridSearchCV` or `RandomizedSearchCV` takes.

    | in scikit-learn | here |
    | --- | --- |
    | a list of one value | a constant |
    | a list of ascending numbers | an ordinal |
    | any other list | a categorical; repeated values are weights |
    | `uniform`, `loguniform` (`reciprocal`) | a float |
    | `truncnorm` whose mean lies within its bounds | a float with a prior around its mean |
    | `randint` | an integer, the upper bound excluded as there |
    | a list of dicts | a `Choice` named `"grids"` of the alternatives `"0"`, `"1"`, ... |

    Names stay as they are, `"svc__C"`. `sklearn_params` gives what `set_params` takes.

    **Raises:** `ValueError` naming the parameter for other distributions (the unbounded ones among
    them), an empty list, and a name that is no non-empty string without `/`.
    """
    if isinstance(params, Mapping):
        return SearchSpace({name: _domain(name, value) for name, value in params.items()})
    if isinstance(params, str) or not isinstance(params, Sequence) or not params:
        raise _fail("params", "a dict, or a list of dicts", params)
    grids: dict[str, dict[str, Any]] = {}
    for i, grid in enumerate(params):
        if not isinstance(grid, Mapping):
            raise _fail(f"params[{i}]", "a dict", grid)
        grids[str(i)] = {name: _domain(f"{i}/{name}", value) for name, value in grid.items()}
    return SearchSpace({_GRIDS: Choice(grids)})


def _domain(name: str, value: Any) -> Domain:
    if isinstance(value, stats.distributions.rv_frozen):
        return _of_distribution(name, value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise _fail(name, "a list of values or a distribution of scipy.stats", value)
    listed = [item.item() if isinstance(item, np.generic) else item for item in value]
    if not listed:
        raise _fail(name, "at least one value", value)
    choices: list[Any] = []
    weights: list[int] = []
    for item in listed:
        known = next((i for i, choice in enumerate(choices) if same(choice, item)), None)
        if known is None:
            choices.append(item)
            weights.append(1)
        else:
            weights[known] += 1
    if len(choices) == 1:
        return Constant(choices[0])
    numbers = all(type(item) in (int, float) for item in choices)
    if max(weights) > 1:
        return Categorical(choices, weights=weights)
    if numbers and all(a < b for a, b in itertools.pairwise(choices)):
        return Ordinal(choices)
    return Categorical(choices)


def _of_distribution(name: str, value: Any) -> Domain:
    kind = value.dist.name
    low, high = (float(bound) for bound in value.support())
    if kind == "uniform":
        return Float(low, high)
    if kind in ("loguniform", "reciprocal"):
        shapes, loc, scale = value.dist._parse_args(*value.args, **value.kwds)
        if loc == 0:
            return Float(float(shapes[0] * scale), float(shapes[1] * scale), log=True)
    if kind == "randint":
        # The support of a discrete distribution includes its upper end.
        return Int(int(low), int(high)) if low < high else Constant(int(low))
    if kind == "truncnorm":
        _, loc, scale = value.dist._parse_args(*value.args, **value.kwds)
        if np.isfinite([low, high]).all() and low <= loc <= high:
            return Float(low, high, default=float(loc), spread=float(scale) / (high - low))
    raise _fail(
        name,
        "uniform, loguniform, randint, truncnorm (its mean within finite bounds) or a list",
        f"scipy.stats.{kind} on [{low}, {high}]",
    )


def sklearn_params(config: Config) -> dict[str, Any]:
    """What `estimator.set_params` takes, from a configuration of `space_from_sklearn`'s space.

    Nested keys are joined with `__`; the choice between the dicts of a list leaves no trace.
    """
    if set(config) == {_GRIDS} and isinstance(config[_GRIDS], Mapping):
        config = config[_GRIDS].get(config[_GRIDS]["kind"], {})
    flat: dict[str, Any] = {}

    def descend(tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                descend(value, f"{prefix}{key}__")
            else:
                flat[prefix + key] = value

    descend(config, "")
    return flat


def space_to_sklearn(space: SearchSpace) -> dict[str, Any] | list[dict[str, Any]]:
    """`param_distributions` of `RandomizedSearchCV` from a space.

    Keys are joined with `__`. Priors are kept except that a conditional space becomes a list of
    dicts, one for each combination of values that conditions ask for, among which scikit-learn
    chooses with equal odds. `space_from_sklearn` is the inverse but for nesting, conditions and
    defaults, and for integers with a step, which become ordinals.

    **Raises:** `ValueError` naming the key for what scikit-learn cannot express: arrays, shares and
    ordered arrays, logarithmic integers and grids, weights that are no whole numbers, a prior
    around the default on a logarithmic scale, constraints, and conditions with more than a
    thousand combinations.
    """
    if space.constraints:
        raise _fail("constraints", "none, as scikit-learn has none", [*space.constraints])
    if set(path.split("/")[0] for path in space.domains) == {_GRIDS}:
        kinds = space.domains[f"{_GRIDS}/kind"]
        assert isinstance(kinds, Categorical)
        grids: list[dict[str, Any]] = []
        for kind in kinds.choices:
            start = f"{_GRIDS}/{kind}/"
            inside = {p[len(start) :]: d for p, d in space.domains.items() if p.startswith(start)}
            if any(set(domain.when) != {f"{_GRIDS}/kind"} for domain in inside.values()):
                break
            grids.append({_name(path): _values(path, d) for path, d in inside.items()})
        else:
            return grids
    parents = {parent for domain in space.domains.values() for parent in domain.when}
    if not parents:
        return {_name(path): _values(path, domain) for path, domain in space.domains.items()}
    found: list[dict[str, Any]] = []
    deciding = [path for path in space.order if path in parents]
    for fixed in assignments(space, deciding, lambda path: space.domains[path].every()):
        active = [path for path in space.domains if space.is_active(path, fixed)]
        found.append(
            {_name(p): [fixed[p]] if p in fixed else _values(p, space.domains[p]) for p in active}
        )
        if len(found) > _LIMIT:
            raise _fail("conditions", f"at most {_LIMIT} combinations of values", "more")
    return found


def _name(path: str) -> str:
    return path.replace("/", "__")


def _values(path: str, domain: Domain) -> Any:
    if isinstance(domain, Constant):
        return [domain.value]
    if isinstance(domain, Categorical):
        weights = domain.weights or [1] * len(domain.choices)
        if any(weight != int(weight) for weight in weights):
            raise _fail(path, "weights that are whole numbers, or none", domain.weights)
        return [c for c, w in zip(domain.choices, weights, strict=True) for _ in range(int(w))]
    if isinstance(domain, Ordinal) and domain.spread is None:
        return list(domain.values)
    if isinstance(domain, Int) and not domain.log and domain.spread is None:
        if domain.step > 1:
            return list(domain.values)
        return stats.randint(domain.low, domain.high + 1)
    if isinstance(domain, Float) and not domain.shape:
        width = domain.high - domain.low
        if domain.step is not None and not domain.log and domain.spread is None:
            return [domain.decode(np.array(i / domain._last)) for i in range(domain._last + 1)]
        if domain.step is None and domain.log and domain.spread is None:
            return stats.loguniform(domain.low, domain.high)
        if domain.step is None and domain.spread is not None and not domain.log:
            scale = domain.spread * width
            ends = [(end - domain.default) / scale for end in (domain.low, domain.high)]
            return stats.truncnorm(*ends, loc=domain.default, scale=scale)
        if domain.step is None and domain.spread is None:
            return stats.uniform(domain.low, width)
    raise _fail(path, "a domain that scikit-learn can express", str(domain))


__all__ = ["sklearn_params", "space_from_sklearn", "space_to_sklearn"]
