"""ConfigSpace's spaces and ours, in both directions (Lindauer et al. 2019)."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from strategies.space.choices import Categorical, Constant, Listed, Ordinal
from strategies.space.domains import Domain, _fail, same
from strategies.space.numeric import Float, Int
from strategies.space.search_space import Config, SearchSpace
from strategies.space.tree import nested

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_NAMES = {
    "LessThan": "<",
    "LessThanEquals": "<=",
    "GreaterThan": ">",
    "GreaterThanEquals": ">=",
    "Equals": "==",
}


@dataclass(frozen=True)
class Forbidden:
    """A forbidden clause as a constraint: a predicate that is false where the clause holds.

    - `kind`: `"in"` (a hyperparameter has one of some values), `"compare"` (with a value),
      `"relation"` (between two hyperparameters), `"and"`, `"or"`.
    - `paths`: the hyperparameters; none for `"and"` and `"or"`.
    - `operator`: of `"compare"` and `"relation"`.
    - `values`: of `"in"` and `"compare"`.
    - `parts`: of `"and"` and `"or"`.

    A clause about a hyperparameter that a configuration does not have does not hold.
    """

    kind: str
    paths: tuple[str, ...] = ()
    operator: str = ""
    values: tuple[Any, ...] = ()
    parts: "tuple[Forbidden, ...]" = ()

    def __call__(self, config: Config) -> bool:
        """Whether a configuration is allowed."""
        return not self._holds(config)

    def _holds(self, config: Config) -> bool:
        if self.kind in ("and", "or"):
            return (all if self.kind == "and" else any)(part._holds(config) for part in self.parts)
        given = []
        for path in self.paths:
            at: Any = config
            for key in path.split("/"):
                if not isinstance(at, Mapping) or key not in at:
                    return False
                at = at[key]
            given.append(at)
        if self.kind == "in":
            return any(same(given[0], value) for value in self.values)
        return _OPERATORS[self.operator](*given, *self.values)


def space_from_configspace(space: Any) -> SearchSpace:
    """Our space from a `ConfigSpace.ConfigurationSpace`.

    Names with `/` become nested keys. Default values are kept, and so are weights, normal
    distributions on a linear scale (as a prior around the mean), conditions and forbidden clauses
    (as constraints).

    **Raises:** `ValueError` naming the hyperparameter for what cannot be expressed: beta
    distributions, normal ones on a logarithmic scale or without bounds, normal integers, conditions
    joined by "or" unless they are on one parent, conditions on continuous parents, and comparisons
    of ordinals in forbidden clauses. `ImportError` with the line that installs ConfigSpace.
    """
    _configspace()
    domains: dict[str, Domain] = {}
    for name, parameter in space.items():
        domains[name] = _domain(name, parameter)
    when: dict[str, dict[str, tuple[Any, ...]]] = {}
    for condition in space.conditions:
        _add(when.setdefault(condition.child.name, {}), condition, domains)
    tree = nested({name: replace(d, when=when.get(name, {})) for name, d in domains.items()})
    clauses = [_forbidden(clause, domains) for clause in space.forbidden_clauses]
    names = [str(clause) for clause in space.forbidden_clauses]
    return SearchSpace(tree, constraints=dict(zip(names, clauses, strict=True)))


def _configspace() -> Any:
    try:
        import ConfigSpace
    except ImportError as error:
        raise ImportError(
            'this conversion needs ConfigSpace: pip install "hypergrad-engine[configspace]"'
        ) from error
    return ConfigSpace


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _domain(name: str, parameter: Any) -> Domain:
    kind = type(parameter).__name__
    default = _plain(getattr(parameter, "default_value", None))
    if kind == "Constant":
        return Constant(_plain(parameter.value))
    if kind == "CategoricalHyperparameter":
        choices = [_plain(choice) for choice in parameter.choices]
        if len(choices) == 1:
            return Constant(choices[0])
        weights = parameter.weights
        return Categorical(
            choices, weights=None if weights is None else list(weights), default=default
        )
    if kind == "OrdinalHyperparameter":
        values = [_plain(value) for value in parameter.sequence]
        return Constant(values[0]) if len(values) == 1 else Ordinal(values, default=default)
    if kind == "UniformIntegerHyperparameter":
        return Int(parameter.lower, parameter.upper, log=parameter.log, default=default)
    if kind == "UniformFloatHyperparameter":
        return Float(parameter.lower, parameter.upper, log=parameter.log, default=default)
    if kind == "NormalFloatHyperparameter" and not parameter.log:
        low, high = float(parameter.lower), float(parameter.upper)
        if np.isfinite([low, high]).all() and default == parameter.mu and low <= default <= high:
            return Float(low, high, default=default, spread=float(parameter.sigma) / (high - low))
    raise _fail(
        name,
        "a constant, categorical, ordinal, uniform, or a linear normal float around its default",
        str(parameter),
    )


def _add(when: dict[str, tuple[Any, ...]], condition: Any, domains: Mapping[str, Domain]) -> None:
    """Add a condition to those that a hyperparameter has already; all of them must hold."""
    kind = type(condition).__name__
    if kind == "AndConjunction":
        for part in condition.components:
            _add(when, part, domains)
        return
    if kind == "OrConjunction":
        alternatives: dict[str, tuple[Any, ...]] = {}
        for part in condition.components:
            one: dict[str, tuple[Any, ...]] = {}
            _add(one, part, domains)
            for parent, values in one.items():
                known = alternatives.get(parent, ())
                alternatives[parent] = known + tuple(
                    v for v in values if not any(same(v, w) for w in known)
                )
        if len(alternatives) > 1:
            raise _fail(condition.child.name, "conditions that must all hold", str(condition))
        ((parent, allowed),) = alternatives.items()
    else:
        parent = condition.parent.name
        allowed = _allowed(kind, condition, domains[parent])
    known = when.get(parent, allowed)
    when[parent] = tuple(v for v in allowed if any(same(v, w) for w in known))


def _allowed(kind: str, condition: Any, parent: Domain) -> tuple[Any, ...]:
    """The values of the parent under which the child exists."""
    if kind == "InCondition":
        return tuple(_plain(value) for value in condition.values)
    value = _plain(condition.value)
    if kind == "EqualsCondition":
        return (value,)
    if isinstance(parent, Listed):
        listed = parent.options
        if kind == "NotEqualsCondition":
            return tuple(v for v in listed if not same(v, value))
        at = parent.index(value)
        return tuple(listed[at + 1 :] if kind == "GreaterThanCondition" else listed[:at])
    if isinstance(parent, Int):
        tests = {
            "NotEqualsCondition": operator.ne,
            "GreaterThanCondition": operator.gt,
            "LessThanCondition": operator.lt,
        }
        return tuple(v for v in parent.values if tests[kind](v, value))
    raise _fail(condition.child.name, "a condition on a discrete hyperparameter", str(condition))


def _forbidden(clause: Any, domains: Mapping[str, Domain]) -> Forbidden:
    kind = type(clause).__name__.removeprefix("Forbidden")
    if kind in ("AndConjunction", "OrConjunction"):
        parts = tuple(_forbidden(part, domains) for part in clause.components)
        return Forbidden("and" if kind == "AndConjunction" else "or", parts=parts)
    if kind in ("EqualsClause", "InClause"):
        values = clause.values if kind == "InClause" else [clause.value]
        return Forbidden(
            "in", (clause.hyperparameter.name,), values=tuple(_plain(v) for v in values)
        )
    relation = kind.endswith("Relation")
    paths = (clause.left.name, clause.right.name) if relation else (clause.hyperparameter.name,)
    sign = _NAMES[kind.removesuffix("Relation" if relation else "Clause")]
    for path in paths:
        if not isinstance(domains[path], Float | Int | Constant):
            raise _fail(path, "a number in a forbidden comparison", str(clause))
    if relation:
        return Forbidden("relation", paths, sign)
    return Forbidden("compare", paths, sign, (_plain(clause.value),))


def space_to_configspace(space: SearchSpace, *, seed: int | None = None) -> Any:
    """A `ConfigSpace.ConfigurationSpace` from our space; names are paths, `"model/width"`.

    **Arguments:**

    - `seed`: of the space that is made.

    **Raises:** `ValueError` naming the key for what ConfigSpace cannot express: arrays, shares and
    ordered arrays, steps, priors around the default except on linear floats, constants that are
    neither numbers nor strings, and constraints that are not forbidden clauses. `ImportError` with
    the line that installs ConfigSpace.
    """
    library = _configspace()
    made = library.ConfigurationSpace(seed=seed)
    parameters = {path: _parameter(library, path, d) for path, d in space.domains.items()}
    made.add(list(parameters.values()))
    conditions = []
    for path, domain in space.domains.items():
        parts = []
        for parent, values in domain.when.items():
            if isinstance(space.domains[parent], Constant):
                continue
            single = len(values) == 1
            make = library.EqualsCondition if single else library.InCondition
            allowed = values[0] if single else list(values)
            parts.append(make(parameters[path], parameters[parent], allowed))
        if parts:
            conditions.append(parts[0] if len(parts) == 1 else library.AndConjunction(*parts))
    made.add(conditions)
    for name, predicate in space.constraints.items():
        if not isinstance(predicate, Forbidden):
            raise _fail(f"constraint {name}", "a forbidden clause of ConfigSpace", predicate)
        made.add(_clause(library, predicate, parameters))
    return made


def _parameter(library: Any, path: str, domain: Domain) -> Any:
    default = domain.middle()
    if isinstance(domain, Constant) and type(domain.value) in (int, float, str):
        return library.Constant(path, domain.value)
    if isinstance(domain, Categorical):
        return library.CategoricalHyperparameter(
            path, list(domain.choices), weights=domain.weights, default_value=default
        )
    if isinstance(domain, Ordinal) and domain.spread is None:
        return library.OrdinalHyperparameter(path, list(domain.values), default_value=default)
    if isinstance(domain, Int) and domain.step == 1 and domain.spread is None:
        return library.UniformIntegerHyperparameter(
            path, domain.low, domain.high, log=domain.log, default_value=default
        )
    if isinstance(domain, Float) and not domain.shape and domain.step is None:
        if domain.spread is None:
            return library.UniformFloatHyperparameter(
                path, domain.low, domain.high, log=domain.log, default_value=default
            )
        if not domain.log:
            sigma = domain.spread * (domain.high - domain.low)
            return library.NormalFloatHyperparameter(
                path, default, sigma, domain.low, domain.high, default_value=default
            )
    raise _fail(path, "a domain that ConfigSpace can express", str(domain))


def _clause(library: Any, predicate: Forbidden, parameters: Mapping[str, Any]) -> Any:
    if predicate.kind in ("and", "or"):
        make = (
            library.ForbiddenAndConjunction
            if predicate.kind == "and"
            else library.ForbiddenOrConjunction
        )
        return make(*(_clause(library, part, parameters) for part in predicate.parts))
    about = [parameters[path] for path in predicate.paths]
    if predicate.kind == "in":
        if len(predicate.values) == 1:
            return library.ForbiddenEqualsClause(about[0], predicate.values[0])
        return library.ForbiddenInClause(about[0], list(predicate.values))
    name = next(name for name, sign in _NAMES.items() if sign == predicate.operator)
    ending = "Relation" if predicate.kind == "relation" else "Clause"
    return getattr(library, f"Forbidden{name}{ending}")(*about, *predicate.values)


__all__ = ["Forbidden", "space_from_configspace", "space_to_configspace"]
