"""The search space: named domains, their configurations, and the vectors of searchers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from strategies.space.choices import Categorical, Constant, Ordinal
from strategies.space.domains import Domain, _fail, numbers, same
from strategies.space.identity import content
from strategies.space.numeric import Int
from strategies.space.point import Point
from strategies.space.stored import config_to_json, flat_from_json, space_to_dict, tree_from_dict
from strategies.space.tree import domains_of, nested

Config = dict[str, Any]

#: Unconstrained coordinates stop here: logit(1e-12) is about -27.6.
_EDGE = 1e-12
#: Draws after which a constraint counts as one that cannot be met.
_REJECTIONS = 10_000


class SearchSpace:
    """Named hyperparameters, each with a domain, some existing only under conditions.

    A *configuration* is a nested dict of plain Python values. Searchers see it as a vector of
    `dimension` *unit* coordinates in [0, 1], or, for its differentiable part, as an unconstrained
    vector, the logit of the unit coordinates. Inactive hyperparameters are absent from a
    configuration; their coordinates hold the encoding of their default.

    **Arguments:**

    - `tree`: nested mapping from names to domains, to `Choice`s, to nested mappings, or to plain
      values, which become constants. Names are joined with `/` to paths.
    - `constraints`: mapping from a name to a predicate on configurations: a function that takes a
      nested configuration and says whether it is allowed. Predicates are met by rejection, so they
      should leave a fair part of the space; `Simplex` and `Ordered` hold by construction.

    **Raises:** `ValueError` naming the key, what was expected and what was received, if a name is
    not a non-empty string without `/`, a condition cannot be met, or nothing can be tuned.

    !!! example

        ```python
        from strategies.space import Categorical, Float, Int, SearchSpace

        space = SearchSpace(
            {
                "l2": Float(1e-6, 1e2, log=True, shape=(64,)),
                "model": {"width": Int(8, 256, log=True)},
                "scale": Categorical(["none", "standard"]),
            }
        )
        ```
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        *,
        constraints: Mapping[str, Callable[[Config], bool]] | None = None,
    ):
        if not isinstance(tree, Mapping):
            raise ValueError(f"space: expected a mapping from names to domains, received {tree!r}")
        if not isinstance(constraints, Mapping | None):
            raise _fail("constraints", "a mapping from names to predicates", constraints)
        self.constraints = dict(constraints or {})
        for name, predicate in self.constraints.items():
            if not callable(predicate):
                raise _fail(f"constraint {name}", "a function of a configuration", predicate)
        self.domains: dict[str, Domain] = {}
        for path, domain in domains_of(tree):
            if path in self.domains:
                raise _fail(path, "one domain for a path", "two")
            self.domains[path] = domain
        for path in self.domains:
            parts = path.split("/")
            for i in range(1, len(parts)):
                if "/".join(parts[:i]) in self.domains:
                    raise _fail("/".join(parts[:i]), "a hyperparameter or a group", "both")
        if not any(domain.tunable for domain in self.domains.values()):
            given = f"only constants: {list(self.domains)}" if self.domains else "none"
            raise ValueError(
                "space: expected at least one hyperparameter to tune, such as Float(0.0, 1.0) or "
                f"Categorical([...]), received {given}"
            )
        #: Paths, those that conditions depend on first.
        self.order = self._parents_first()
        self.slices: dict[str, slice] = {}
        start = 0
        for path, domain in self.domains.items():
            self.slices[path] = slice(start, start + domain.size)
            start += domain.size
        #: Number of unit coordinates.
        self.dimension = start
        #: Boolean mask of the unit coordinates that a gradient can exist for.
        self.differentiable = np.zeros(start, bool)
        for path, domain in self.domains.items():
            self.differentiable[self.slices[path]] = domain.differentiable
        self._middle = {path: domain.middle() for path, domain in self.domains.items()}
        #: Unit coordinates of what is inactive: those of the defaults.
        self.rest = np.concatenate(
            [d.encode(self._middle[p]) for p, d in self.domains.items()] or [np.empty(0)]
        )

    @classmethod
    def of(cls, space: "SearchSpace | Mapping[str, Any]") -> "SearchSpace":
        """A space itself, or that of the mapping that makes one."""
        return space if isinstance(space, SearchSpace) else cls(space)

    # Conditions

    def _parents_first(self) -> tuple[str, ...]:
        for path, domain in self.domains.items():
            for parent, values in domain.when.items():
                if parent not in self.domains:
                    raise _fail(path, f"a condition on one of {list(self.domains)}", parent)
                other = self.domains[parent]
                if not isinstance(other, Categorical | Ordinal | Int | Constant):
                    raise _fail(path, "a condition on a discrete hyperparameter", parent)
                if not values:
                    raise _fail(path, f"a condition on {parent!r} that can be met", values)
                checked = tuple(other.check(v, f"{path} when {parent}") for v in values)
                domain.when[parent] = checked  # type: ignore[index]
        order: list[str] = []
        waiting = list(self.domains)
        while waiting:
            ready = [p for p in waiting if all(q in order for q in self.domains[p].when)]
            if not ready:
                raise _fail(waiting[0], "conditions without a cycle", waiting)
            order += ready
            waiting = [p for p in waiting if p not in ready]
        return tuple(order)

    def is_active(self, path: str, flat: Mapping[str, Any]) -> bool:
        """Whether a hyperparameter exists, given the values of its parents in `flat`."""
        return all(
            parent in flat and any(same(flat[parent], value) for value in values)
            for parent, values in self.domains[path].when.items()
        )

    @property
    def conditional(self) -> bool:
        """Whether any hyperparameter has a condition."""
        return any(domain.when for domain in self.domains.values())

    def active_mask(self, config: Mapping[str, Any] | Point) -> np.ndarray:
        """Boolean mask of the unit coordinates of the hyperparameters that `config` has."""
        flat = config.flat if isinstance(config, Point) else self._raw_flat(config)
        mask = np.zeros(self.dimension, bool)
        for path, where in self.slices.items():
            mask[where] = path in flat
        return mask

    # Configurations

    def paths(self, tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Paths and values of a tree, nested or flat, below a prefix; nothing is checked.

        It stops at declared paths, so that constants may be dicts.
        """
        for key, value in tree.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping) and path not in self.domains:
                yield from self.paths(value, path + "/")
            else:
                yield path, value

    def _raw_flat(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Paths to values; only declared paths, each once."""
        if not isinstance(config, Mapping):
            raise _fail("config", "a mapping", config)
        flat: dict[str, Any] = {}
        for path, value in self.paths(config):
            if path not in self.domains:
                raise _fail(path, f"one of the keys {list(self.domains)}", value)
            if path in flat:
                raise _fail(path, "one value", "two")
            flat[path] = value
        return flat

    def point(self, config: Mapping[str, Any] | Point) -> Point:
        """A configuration checked once and for all, with its forms; raises as `flatten` does.

        A `Point` of this space is returned as it is.
        """
        if isinstance(config, Point) and config.space is self:
            return config
        given = config.config if isinstance(config, Point) else config
        return Point(self, self.flatten(given))

    def flatten(self, config: Mapping[str, Any] | Point) -> dict[str, Any]:
        """Paths to canonical values, in the order of the space.

        **Arguments:**

        - `config`: a complete configuration, nested or flat or anything between. Arrays of any
          library are welcome.

        **Raises:** `ValueError` naming the key, what was expected and what was received, for an
        unknown, missing or inactive key, for a value of the wrong type, shape or range, and for
        a constraint that is not met.
        """
        flat = self._checked(config)
        if isinstance(config, Point) and config.space is self:
            return flat
        broken = self._broken(self.unflatten(flat)) if self.constraints else None
        if broken is not None:
            raise _fail(f"constraint {broken}", "a configuration that meets it", flat)
        return flat

    def _checked(self, config: Mapping[str, Any] | Point) -> dict[str, Any]:
        if isinstance(config, Point):
            if config.space is self:
                return dict(config.flat)
            config = config.config
        given = self._raw_flat(config)

        def canonical(path: str) -> Any:
            domain = self.domains[path]
            if path in given:
                return domain.check(given[path], path)
            if isinstance(domain, Constant):
                return domain.value
            raise ValueError(f"{path!r}: expected {domain}, received nothing (missing key)")

        return self._all_active(given, self.active(canonical))

    def _all_active(self, given: Mapping[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
        """The paths and values of what is active, if nothing else was given."""
        for path in given:
            if path not in flat:
                parents = {parent: flat.get(parent) for parent in self.domains[path].when}
                raise _fail(
                    path, f"no value, as its conditions do not hold ({parents})", given[path]
                )
        return flat

    def _broken(self, config: Config) -> str | None:
        """The first constraint that a configuration does not meet."""
        return next((name for name, met in self.constraints.items() if not met(config)), None)

    def feasible(self, config: Config) -> bool:
        """Whether a valid nested configuration meets all constraints."""
        return self._broken(config) is None

    def unflatten(self, flat: Mapping[str, Any]) -> Config:
        """The nested dict of a mapping from paths to values; nothing is checked."""
        if not isinstance(flat, Mapping) or not all(isinstance(path, str) for path in flat):
            raise ValueError(f"'flat': expected values by their paths, received {flat!r:.80}")
        return nested(flat)

    def validate(self, config: Mapping[str, Any]) -> Config:
        """The canonical, nested form of a configuration; raises as `flatten` does."""
        return self.unflatten(self.flatten(config))

    def merged(self, config: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
        """A complete configuration with some values replaced; both nested or flat.

        **Raises:** as `flatten` does.
        """
        return self.validate({**self.flatten(config), **self._raw_flat(changes)})

    def default(self) -> Config:
        """Defaults where the domains have them, the middle of the domain elsewhere.

        If that breaks a constraint, a draw from the prior that breaks none.
        """
        return self.complete({})

    def complete(
        self, partial: Mapping[str, Any], rng: np.random.Generator | None = None
    ) -> Config:
        """A configuration from some of its values, nested or flat.

        **Arguments:**

        - `partial`: values to keep. Keys that turn out to be inactive are an error.
        - `rng`: draws what is missing; without it the defaults are taken if they meet the
          constraints.

        **Raises:** `ValueError` if hardly any draw meets the constraints.
        """
        given = self._raw_flat(partial)
        config = self._completed(given, rng)
        if self.constraints:
            rng = np.random.default_rng(0) if rng is None else rng
            draws = 0
            while not self.feasible(config):
                if draws == _REJECTIONS:
                    received = f"none in {draws} draws" + (f" with {given}" if given else "")
                    expected = f"configurations that meet {list(self.constraints)}"
                    raise _fail("constraints", expected, received)
                config = self._completed(given, rng)
                draws += 1
        return config

    def _completed(self, given: Mapping[str, Any], rng: np.random.Generator | None) -> Config:
        def value(path: str) -> Any:
            domain = self.domains[path]
            if path in given:
                return domain.check(given[path], path)
            return self._middle[path] if rng is None else domain.draw(rng.random(domain.uniforms))

        return self.unflatten(self._all_active(given, self.active(value)))

    def active(self, value: Callable[[str], Any]) -> dict[str, Any]:
        """Paths to values, in the order of the space, of all that these values make active.

        **Arguments:**

        - `value`: of a path. It is asked for what is active only, parents first.
        """
        flat: dict[str, Any] = {}
        for path in self.order:
            if self.is_active(path, flat):
                flat[path] = value(path)
        return {path: flat[path] for path in self.domains if path in flat}

    def sample(self, rng: np.random.Generator) -> Config:
        """A configuration from the prior: uniform in the unit coordinates, choices by weight.

        Hyperparameters that are not active draw no random numbers. Draws that break a constraint
        are drawn again.

        **Raises:** `ValueError` for what is no generator of NumPy, such as a seed.
        """
        if not isinstance(rng, np.random.Generator):
            raise ValueError(
                "'rng': expected a generator such as numpy.random.default_rng(0), received "
                f"{rng!r:.80}"
            )
        return self.complete({}, rng)

    # Vectors

    @property
    def uniforms(self) -> int:
        """Number of uniform variates that `from_uniform` takes."""
        return sum(domain.uniforms for domain in self.domains.values())

    def from_uniform(self, point: np.ndarray) -> Config:
        """The configuration at a point of the unit cube of `uniforms` dimensions.

        Uniform points give configurations from the prior; points of a low-discrepancy sequence
        give evenly spread ones. Constraints by predicate may be broken (see `feasible`).
        """
        parts: dict[str, np.ndarray] = {}
        start = 0
        for path, domain in self.domains.items():
            parts[path] = np.asarray(point[start : start + domain.uniforms], float)
            start += domain.uniforms
        return self.unflatten(self.active(lambda path: self.domains[path].draw(parts[path])))

    @property
    def informed(self) -> bool:
        """Whether any hyperparameter has a prior on its best value: `spread`, or `weights`."""
        return any(
            getattr(domain, "spread", None) is not None
            or getattr(domain, "weights", None) is not None
            for domain in self.domains.values()
        )

    def log_prior(self, units: np.ndarray) -> np.ndarray:
        """Logarithm of the prior's density for each row of unit coordinates `(n, dimension)`.

        Up to a constant: zero where every hyperparameter is at its likeliest value. Those that are
        inactive cost nothing.
        """
        total = np.zeros(len(units))
        if not self.informed:
            return total
        _, active = self._snapped(units)
        for path, where in self.slices.items():
            total += np.where(active[path], self.domains[path].log_prior(units[:, where]), 0.0)
        return total

    def likeliest(self) -> np.ndarray:
        """Unit coordinates of the place where the prior's density is largest, `(dimension,)`."""
        return self.encode(self.active(lambda path: self.domains[path].likeliest()))

    def log_prior_slope(self, unit: np.ndarray) -> np.ndarray:
        """Its derivative at one place, shape `(dimension,)`; zero for what has none."""
        slope = np.zeros(self.dimension)
        if not self.informed:
            return slope
        _, active = self._snapped(unit[None])
        for path, where in self.slices.items():
            if self.domains[path].differentiable and active[path][0]:
                slope[where] = self.domains[path].log_prior_slope(unit[where])
        return slope

    def uninformed(self) -> "SearchSpace":
        """The space without what was said of its best values: draws are uniform."""
        copy = object.__new__(SearchSpace)
        copy.__dict__.update(self.__dict__)
        copy.domains = {path: domain.uninformed() for path, domain in self.domains.items()}
        return copy

    def encode(self, config: Mapping[str, Any] | Point) -> np.ndarray:
        """Unit coordinates, shape `(dimension,)`, of a configuration.

        Affine in a float's value or its logarithm, centres of equal intervals for integers and
        ordinals, one-hot for categoricals; inactive ones hold their default's encoding.
        Raises as `flatten` does, except for constraints.
        """
        if isinstance(config, Point) and config.space is self:
            return config.unit.copy()
        return Point(self, self._checked(config)).unit.copy()

    def decode(self, vector: np.ndarray) -> Config:
        """The canonical configuration at unit coordinates; the exact inverse of `encode`.

        Between configurations that meet a predicate there may be some that do not (`feasible`).
        """
        shape = (self.dimension,)
        vector = numbers(vector, "vector", f"shape {shape}", shape, finite=False)
        decoded = self.active(lambda path: self.domains[path].decode(vector[self.slices[path]]))
        return self.unflatten(decoded)

    def snap(self, units: np.ndarray) -> np.ndarray:
        """`encode(decode(row))` for every row of a matrix of unit coordinates, much faster.

        Floats without a step are only clipped, not rounded to their canonical digits.
        """
        return self._snapped(units)[0]

    def _snapped(self, units: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """`snap`, and for each hyperparameter the rows that have it."""
        units = np.array(units, float)
        active: dict[str, np.ndarray] = {}
        for path in self.order:
            domain, where = self.domains[path], self.slices[path]
            exists = np.ones(len(units), bool)
            for parent, allowed in domain.when.items():
                exists &= active[parent] & self._meets(parent, allowed, units)
            active[path] = exists
            if domain.size:
                units[exists, where] = domain.snap(units[exists, where])
                units[~exists, where] = self.rest[where]
        return units, active

    def _meets(self, parent: str, allowed: Sequence[Any], units: np.ndarray) -> np.ndarray:
        """For each row, whether a parent, whose columns have been snapped, has an allowed value."""
        domain, columns = self.domains[parent], units[:, self.slices[parent]]
        if not domain.size:  # its only value, which is allowed, or there would be no such space
            return np.ones(len(units), bool)
        if isinstance(domain, Categorical):
            chosen = columns[:, [domain.index(value) for value in allowed]]
            return np.asarray(chosen.any(axis=1))
        seen, row = np.unique(columns[:, 0], return_inverse=True)
        values = [domain.decode(unit) for unit in seen]
        meets = [any(same(value, one) for one in allowed) for value in values]
        return np.array(meets, bool)[row]

    def to_unconstrained(self, config: Mapping[str, Any]) -> np.ndarray:
        """Logit of the differentiable unit coordinates of the hyperparameters that are active.

        Values on a bound, whose logit is infinite, are moved inwards by 1e-12 of the range.
        """
        point = self.point(config)
        unit = point.unit[self.differentiable & self.active_mask(point)]
        unit = np.clip(unit, _EDGE, 1.0 - _EDGE)
        return np.log(unit) - np.log1p(-unit)

    def from_unconstrained(self, vector: np.ndarray, config: Mapping[str, Any]) -> Config:
        """Inverse of `to_unconstrained`; everything that is not differentiable is `config`'s."""
        point = self.point(config)
        where = self.differentiable & self.active_mask(point)
        shape = (int(where.sum()),)
        vector = numbers(vector, "vector", f"shape {shape}", shape, finite=False)
        unit = point.unit.copy()
        unit[where] = _sigmoid(vector)
        return self.decode(unit)

    # Gradients

    def flatten_gradient(
        self, config: Mapping[str, Any] | Point, gradient: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Paths to float arrays of the derivative with respect to natural values.

        Keys may be nested or flat and may be missing or `None`; constants are ignored.

        **Raises:** `ValueError` naming the key, what was expected and what was received, for an
        unknown or inactive key, one that has no derivative, and a wrong shape or type.
        """
        present = config.flat if isinstance(config, Point) else self._raw_flat(config)
        flat: dict[str, np.ndarray] = {}
        for path, value in self._raw_flat(gradient).items():
            domain = self.domains[path]
            if value is None or isinstance(domain, Constant):
                continue
            if not domain.differentiable:
                raise _fail(path, f"no gradient, as it is {domain}", value)
            if path not in present:
                raise _fail(path, "no gradient, as the configuration does not have it", value)
            shape = np.shape(present[path])
            expected = f"a gradient of numbers of shape {shape}"
            flat[path] = numbers(value, path, expected, shape, finite=False)
        return flat

    def pull_back(
        self,
        config: Mapping[str, Any] | Point,
        gradient: Mapping[str, Any],
        *,
        unconstrained: bool = False,
    ) -> np.ndarray:
        """Chain rule: a derivative in natural values becomes one in a searcher's coordinates.

        **Arguments:**

        - `config`: where the derivative was taken.
        - `gradient`: with respect to the natural values, nested or flat, possibly partial.
        - `unconstrained`: for the coordinates of `to_unconstrained` instead of those of `encode`.

        **Returns:** An array of shape `(dimension,)` (or that of `to_unconstrained`); NaN where
        the gradient says nothing or was itself not finite.
        """
        point = self.point(config)
        result = np.full(self.dimension, np.nan)
        for path, part in self.flatten_gradient(point, gradient).items():
            result[self.slices[path]] = self.domains[path].pull_back(point.flat[path], part)
        result[~np.isfinite(result)] = np.nan
        if not unconstrained:
            return result
        unit = np.clip(point.unit, _EDGE, 1.0 - _EDGE)
        return (result * unit * (1.0 - unit))[self.differentiable & self.active_mask(point)]

    # JSON

    def to_json(self, config: Mapping[str, Any] | Point) -> dict[str, Any]:
        """Paths to JSON values; choices that JSON would change are stored by position."""
        return config_to_json(self, config)

    def from_json(self, stored: Mapping[str, Any]) -> Config:
        """The configuration that `to_json` stored."""
        return self.point_from_json(stored).config

    def point_from_json(self, stored: Mapping[str, Any]) -> Point:
        """The point of the configuration that `to_json` stored."""
        return self.point(flat_from_json(self, stored))

    def to_dict(self) -> dict[str, Any]:
        """The space itself as JSON values, for `from_dict`.

        **Raises:** `ValueError` naming the choice or the constraint that JSON cannot hold.
        """
        return space_to_dict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Mapping[str, Any]]) -> "SearchSpace":
        """The space that `to_dict` stored."""
        return cls(tree_from_dict(stored))

    def describe(self) -> dict[str, str]:
        """Paths to one line of text for each domain; equal for equal spaces."""
        lines = {
            path: f"{domain} when {dict(domain.when)}" if domain.when else str(domain)
            for path, domain in self.domains.items()
        }
        return {**lines, **{f"constraint {name}": "predicate" for name in self.constraints}}

    def identity(self) -> dict[str, str]:
        """Paths to what each domain is, to the last choice; equal in every process.

        Functions and other objects count by their content, see `strategies.space.identity`.
        """
        lines = {
            path: ", ".join(
                f"{item.name}={content(getattr(domain, item.name))}" for item in fields(domain)
            )
            for path, domain in self.domains.items()
        }
        known = {path: f"{self.domains[path].kind}: {line}" for path, line in lines.items()}
        limits = {f"constraint {name}": content(met) for name, met in self.constraints.items()}
        return known | limits

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SearchSpace)
            and self.domains == other.domains
            and list(self.domains) == list(other.domains)
            and self.constraints == other.constraints
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        width = max(len(path) for path in self.describe())
        lines = [f"  {path:<{width}}  {text}" for path, text in self.describe().items()]
        return "\n".join([f"SearchSpace of {len(self.domains)} hyperparameters:", *lines])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # Both branches of the usual formula at once, without overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * x))
