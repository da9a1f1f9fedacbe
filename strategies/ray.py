"""Ray Tune's face: the same searchers as `tune.TuneConfig(search_alg=...)`.

```python
from ray import tune
from strategies.ray import HypergradSearch, report


def train(config):
    loss, gradient = ...  # gradient: {"l2": d loss / d l2}, or nothing
    report(loss, gradient, metric="loss")


tuner = tune.Tuner(
    train,
    param_space={"l2": tune.loguniform(1e-6, 1e2), "scale": tune.choice(["none", "standard"])},
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=20, search_alg=HypergradSearch(seed=0)
    ),
)
results = tuner.fit()
```

Nothing here searches: spaces, reports and states are translated, and the searchers of
`strategies.searchers` decide. Ray calls all of it inside the driver's event loop, and an exception
there ends the experiment; so mistakes in the set-up are raised before the first trial, and whatever
goes wrong later is logged and tolerated.
"""

import copy
import json
import logging
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from strategies.observation import Report
from strategies.observation import report as _report
from strategies.searchers.base import Searcher
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
from strategies.translate import Warner, observe

try:
    from ray import tune
    from ray.tune.search import UNDEFINED_METRIC_MODE, UNDEFINED_SEARCH_SPACE
    from ray.tune.search import sample as ray_domains
    from ray.tune.search.searcher import Searcher as RaySearcher
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.ray needs Ray Tune: pip install "hypergrad-engine[ray]"'
    ) from error

logger = logging.getLogger(__name__)

#: The key under which `report` puts everything that is not a metric.
RESERVED = "hypergrad"

#: The most numbers that one report may carry. Ray keeps every report in memory and in several
#: log files; larger arrays belong into a checkpoint.
MAX_NUMBERS = 10_000

_FORMAT = "hypergrad ray searcher state"
_VERSION = 1


# -- spaces ----------------------------------------------------------------------------------


class _Node(ABC):
    """One place in a `param_space`, and how its values translate."""

    @abstractmethod
    def fill(self, flat: Mapping[str, Any]) -> Any:
        """The value that Ray expects here, from our paths and values."""

    @abstractmethod
    def read(self, value: Any, flat: dict[str, Any]) -> None:
        """Collect our paths and values from what stands here in a trial's config."""


@dataclass(frozen=True)
class _Leaf(_Node):
    """One hyperparameter."""

    path: str

    def fill(self, flat: Mapping[str, Any]) -> Any:
        return flat[self.path]

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        if value is not None:
            flat[self.path] = value


@dataclass(frozen=True)
class _Fixed(_Node):
    """Something that is not searched: a constant, or a placeholder that Ray resolves later."""

    value: Any

    def fill(self, flat: Mapping[str, Any]) -> Any:
        return self.value

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class _Group(_Node):
    """A dict. Ray merges ours into its own, so at the top only what is searched is filled in."""

    nodes: Mapping[Any, _Node]
    complete: bool

    def fill(self, flat: Mapping[str, Any]) -> Any:
        return {
            key: node.fill(flat)
            for key, node in self.nodes.items()
            if self.complete or _searched(node)
        }

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        if isinstance(value, Mapping):
            for key, node in self.nodes.items():
                if key in value:
                    node.read(value[key], flat)


@dataclass(frozen=True)
class _Row(_Node):
    """A list or tuple with hyperparameters inside; Ray replaces it as a whole."""

    nodes: Sequence[_Node]
    kind: type

    def fill(self, flat: Mapping[str, Any]) -> Any:
        return self.kind(node.fill(flat) for node in self.nodes)

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        if isinstance(value, list | tuple | np.ndarray):
            for node, item in zip(self.nodes, value, strict=False):
                node.read(item, flat)


@dataclass(frozen=True)
class _Options(_Node):
    """A `tune.choice` whose options have hyperparameters of their own."""

    path: str
    nodes: Sequence[_Node]

    def fill(self, flat: Mapping[str, Any]) -> Any:
        return self.nodes[int(flat[f"{self.path}/kind"])].fill(flat)

    def read(self, value: Any, flat: dict[str, Any]) -> None:
        kind = f"{self.path}/kind"
        if kind not in flat:
            # An option is recognised by what does not contradict it.
            fitting = (i for i, node in enumerate(self.nodes) if _fits(node, value))
            if (index := next(fitting, None)) is None:
                return
            flat[kind] = str(index)
        self.nodes[int(flat[kind])].read(value, flat)


def _options(node: _Node | None, flat: Mapping[str, Any]) -> Iterator[_Options]:
    """The choices with options of their own that a configuration has."""
    if isinstance(node, _Group):
        for child in node.nodes.values():
            yield from _options(child, flat)
    elif isinstance(node, _Row):
        for child in node.nodes:
            yield from _options(child, flat)
    elif isinstance(node, _Options):
        yield node
        yield from _options(node.nodes[int(flat[node.path + "/kind"])], flat)


def _searched(node: _Node) -> bool:
    if isinstance(node, _Group):
        return any(_searched(child) for child in node.nodes.values())
    return not isinstance(node, _Fixed)


def _fits(node: _Node, value: Any) -> bool:
    """Whether a value may have come from a node."""
    if isinstance(node, _Fixed):
        # What stands for an object has been resolved in a trial's config: it tells nothing.
        return not _is_plain(node.value) or (
            type(node.value) is type(value) and bool(node.value == value)
        )
    if isinstance(node, _Group):
        return isinstance(value, Mapping) and all(
            key in node.nodes and _fits(node.nodes[key], item) for key, item in value.items()
        )
    if isinstance(node, _Row):
        return isinstance(value, list | tuple) and len(value) == len(node.nodes)
    return not isinstance(value, Mapping)


@dataclass(frozen=True)
class _Layout:
    """A `param_space` read: our space, and the way between its configurations and Ray's."""

    space: SearchSpace
    root: _Group | None

    def to_ray(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if self.root is None:
            return copy.deepcopy(dict(config))
        filled = self.root.fill(self.space.flatten(config))
        assert isinstance(filled, dict)
        return copy.deepcopy(filled)

    def from_ray(
        self, config: Mapping[str, Any], of: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Paths and values of what is known in a (possibly partial) config of Ray's.

        With `of`, the config that it belongs to in our form, options of choices are those of `of`:
        a gradient does not say which option it is of.
        """
        kinds = {} if of is None else self._kinds(of)
        flat: dict[str, Any] = dict(kinds)
        nested = _nested(config)
        if self.root is None:
            _flatten(nested, "", self.space, flat)
        else:
            self.root.read(nested, flat)
        return {path: value for path, value in flat.items() if path not in kinds}

    def _kinds(self, config: Mapping[str, Any]) -> dict[str, Any]:
        flat = self.space.flatten(config)
        return {
            node.path + "/kind": flat[node.path + "/kind"] for node in _options(self.root, flat)
        }


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys (`"a/b"`), nested ones, and mixtures, all to a nested dict."""
    nested: dict[str, Any] = {}
    for key, value in config.items():
        *groups, name = str(key).split("/")
        at = nested
        for group in groups:
            at = at.setdefault(group, {})
        value = _nested(value) if isinstance(value, Mapping) else value
        if isinstance(value, dict) and isinstance(at.get(name), dict):
            at[name].update(value)
        else:
            at[name] = value
    return nested


def _flatten(
    tree: Mapping[str, Any], prefix: str, space: SearchSpace, flat: dict[str, Any]
) -> None:
    for key, value in tree.items():
        path = prefix + key
        if path in space.domains:
            flat[path] = value
        elif isinstance(value, Mapping):
            _flatten(value, path + "/", space, flat)


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
    return _read_layout(param_space).space


def _read_layout(param_space: Mapping[str, Any]) -> _Layout:
    tree, root = _read_dict(param_space, "", complete=False)
    return _Layout(SearchSpace(tree), root)


def _read_dict(
    tree: Mapping[Any, Any], prefix: str, *, complete: bool
) -> tuple[dict[str, Any], _Group]:
    ours: dict[str, Any] = {}
    nodes: dict[Any, _Node] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if not _has_domains(value):
            nodes[key] = _Fixed(value)
            ours.update(_constants({key: value}))
            continue
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(
                f"{path!r}: expected a key that is a non-empty string without '/', received {key!r}"
            )
        part, nodes[key] = _read(value, path, complete=complete)
        if part is not None:
            ours[key] = part
    return ours, _Group(nodes, complete)


def _read(value: Any, path: str, *, complete: bool) -> tuple[Any, _Node]:
    """Our domain or sub-space (`None` if there is none), and the node."""
    if not _has_domains(value):
        return None, _Fixed(value)
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
            return _float(domain, path, shape), _Leaf(path)
        rows = [_read(item, f"{path}/{i}", complete=True) for i, item in enumerate(value)]
        ours = {str(i): part for i, (part, _) in enumerate(rows) if part is not None}
        return ours or None, _Row([node for _, node in rows], type(value))
    if isinstance(value, ray_domains.Categorical):
        return _read_choice(value, path)
    if isinstance(value, ray_domains.Function):
        return None, _Fixed(value)
    try:
        if isinstance(value, ray_domains.Float):
            return _float(value, path, ()), _Leaf(path)
        if isinstance(value, ray_domains.Integer):
            return _int(value), _Leaf(path)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from None
    raise ValueError(f"{path!r}: expected one of Ray's own domains, received {value!r}")


def _read_choice(value: Any, path: str) -> tuple[Any, _Node]:
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
        return Categorical(options, weights=weights if max(weights) > 1 else None), _Leaf(path)
    alternatives: dict[str, Any] = {}
    nodes: list[_Node] = []
    for i, option in enumerate(value.categories):
        if isinstance(option, Mapping) or not _has_domains(option):
            part, node = _read(option, f"{path}/{i}", complete=True)
            alternatives[str(i)] = part or {}
        else:
            part, node = _read(option, f"{path}/{i}/value", complete=True)
            alternatives[str(i)] = {"value": part}
        nodes.append(node)
    return Choice(alternatives), _Options(path, nodes)


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
        low, high = (
            round(_grid(low, step, math.ceil), 12),
            round(_grid(high, step, math.floor), 12),
        )
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
        elif _is_plain(value):
            found[key] = Constant(value)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


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
    return {
        path: value
        for path, value in space.unflatten(
            {path: _to_ray(path, domain) for path, domain in space.domains.items()}
        ).items()
    }


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


# -- reports ---------------------------------------------------------------------------------


def result(
    value: Any,
    gradient: Any = None,
    *,
    metric: str = "value",
    metrics: Mapping[str, Any] | None = None,
    gradient_error: Any = None,
    config: Mapping[str, Any] | None = None,
    cost: Any = None,
    resource: Any = None,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result dict that carries a hypergradient: what a class trainable's `step` returns.

    Takes the arguments of `report`, without the checkpoint.
    """
    given = _report(
        value,
        gradient,
        gradient_error=gradient_error,
        config=config,
        cost=cost,
        resource=resource,
        info=info,
    )
    extra = {
        name: entry
        for name, entry in given.__dict__.items()
        if name != "value" and entry is not None and entry != {}
    }
    size = _count(extra)
    if size > MAX_NUMBERS:
        raise ValueError(
            f"expected at most {MAX_NUMBERS} numbers in a report, received {size}; "
            "write large arrays into a checkpoint"
        )
    row = dict(metrics or {})
    row[metric] = math.nan if given.value is None else given.value
    if extra:
        row[RESERVED] = extra
    return row


def report(
    value: Any,
    gradient: Any = None,
    *,
    metric: str = "value",
    metrics: Mapping[str, Any] | None = None,
    gradient_error: Any = None,
    config: Mapping[str, Any] | None = None,
    cost: Any = None,
    resource: Any = None,
    info: Mapping[str, Any] | None = None,
    checkpoint: Any = None,
) -> None:
    """Report from inside a trainable: `tune.report` with a hypergradient.

    Everything is turned into plain Python numbers and lists first: the driver never has to unpickle
    a JAX array, and the log files hold numbers.

    **Arguments:**

    - `value`: the objective, a scalar; or a `hypergrad.Hypergradient`, which brings its gradient
      and its residuals along.
    - `gradient`: derivative of `value` with respect to the trial's `config`, keyed like it, nested
      or flat, partial. Without one the trial still counts.
    - `metric`: the name under which `value` is reported; that of `TuneConfig(metric=...)`.
    - `metrics`: further metrics to report beside it.
    - `gradient_error`, `config`, `cost`, `resource`, `info`: as in `strategies.report.report`. The
      searcher takes Ray's `time_total_s` and `training_iteration` for cost and resource when they
      are not given.
    - `checkpoint`: a `tune.Checkpoint`, passed on to `tune.report`.

    The gradient and the rest travel under the reserved key `hypergrad`, together at most
    `MAX_NUMBERS` numbers.

    **Raises:** `ValueError` if the value is not a scalar, the gradient not a mapping, or the report
    too large.
    """
    row = result(
        value,
        gradient,
        metric=metric,
        metrics=metrics,
        gradient_error=gradient_error,
        config=config,
        cost=cost,
        resource=resource,
        info=info,
    )
    tune.report(row, checkpoint=checkpoint)


def _count(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(_count(item) for item in tree.values())
    if isinstance(tree, list):
        return sum(_count(item) for item in tree)
    return 1


def _number(value: Any) -> float | None:
    """A float from whatever a trial reported; `None` if it is no number."""
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        array = np.asarray(value)
        return float(array.reshape(())) if array.size == 1 else None
    except (TypeError, ValueError):
        return None


# -- the searcher ----------------------------------------------------------------------------


class HypergradSearch(RaySearcher):
    """Any of our searchers as a search algorithm of Ray Tune.

    **Arguments:**

    - `searcher`: a searcher; or a function `(space, *, seed, first) -> searcher`, such as a
      searcher's class or a `functools.partial` of it, which is called once the space is known.
      Default: the hypergradient searcher.
    - `space`: where to search: a `SearchSpace`, or a dict of `tune.*` domains. Default: the
      `param_space` of the tuner.
    - `metric`, `mode`: what to optimise, `"min"` or `"max"`. Default: those of `TuneConfig`. They
      must be given here when the tuner has no `param_space`: Ray does not pass them on then.
    - `points_to_evaluate`: configurations to try first, nested or flat, complete or partial.
    - `max_concurrent`: the most trials that may run at once, paused ones not counted. 0 (default)
      leaves that to Ray. `TuneConfig(max_concurrent_trials=...)` and `ConcurrencyLimiter` set it
      too.
    - `seed`: an integer; with the position of a suggestion it decides all randomness.

    Ray asks for the next configuration one trial ahead of need; a search that should see each
    result before the next step wants `max_concurrent=1`.

    Failures: a value that is NaN, infinite, missing or no number, and a trial that raised, are
    failed observations. A gradient entry that does not fit is dropped, with a warning; the value
    counts. See "When trials fail" in the documentation.

    **Raises:** `ValueError` before the first trial if the space cannot be searched or metric and
    mode are missing.
    """

    def __init__(
        self,
        searcher: Searcher | Callable[..., Searcher] | None = None,
        *,
        space: SearchSpace | Mapping[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        max_concurrent: int = 0,
        seed: int = 0,
    ) -> None:
        if mode not in (None, "min", "max"):
            raise ValueError(f"'mode': expected 'min' or 'max', received {mode!r}")
        if isinstance(metric, list | tuple):
            raise ValueError(f"'metric': expected one metric, received {metric!r}")
        super().__init__(metric=metric, mode=mode)
        # The base class drops either of them when the other is missing.
        self._metric, self._mode = metric, mode
        if isinstance(searcher, Searcher) and (space is not None or points_to_evaluate):
            name = "space" if space is not None else "points_to_evaluate"
            raise ValueError(
                f"{name!r}: expected nothing beside a searcher that is built already; give it to "
                "the searcher (`space`, `first`), or give the searcher's class here"
            )
        self.max_concurrent = max_concurrent
        self._seed = seed
        self._make = searcher
        self._points = list(points_to_evaluate or [])
        self._param_space: Any = None
        self._layout: _Layout | None = None
        self._searcher: Searcher | None = None
        self._numbers: dict[str, int] = {}
        self._live: dict[str, dict[str, Any]] = {}
        self._paused: set[str] = set()
        self._warn = Warner()
        if isinstance(searcher, Searcher):
            self._layout = _Layout(searcher.space, None)
            self._searcher = searcher
        elif isinstance(space, SearchSpace):
            self._set_up(_Layout(space, None))
        elif space is not None:
            self._set_up(_read_layout(space))
        self._own_space = self._searcher is not None

    # Set-up

    @property
    def searcher_(self) -> Searcher:
        """Our searcher inside, with its `history`, `pending` and `best` (values minimised)."""
        if self._searcher is None:
            raise ValueError("HypergradSearch has no space yet: Ray gives it when the run starts.")
        return self._searcher

    def _set_up(self, layout: _Layout) -> None:
        make = self._make
        if make is None:
            from strategies.searchers import HypergradientSearcher

            make = HypergradientSearcher
        assert not isinstance(make, Searcher)
        first = [layout.from_ray(point) for point in self._points]
        self._searcher = make(layout.space, seed=self._seed, first=first)
        self._layout = layout

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Called by Ray at the start of an experiment (not at a restore).

        Returns whether `config` was taken as the space: it is not if the space was given to the
        constructor. Trials of an earlier experiment that never ended are forgotten.
        """
        if isinstance(metric, list | tuple):
            raise ValueError(f"'metric': expected one metric, received {metric!r}")
        self._metric = metric or self._metric
        self._mode = mode or self._mode
        for trial_id in list(self._live):
            self._end(trial_id)
        if self._own_space:
            return False
        layout = _read_layout(config)
        if self._searcher is not None and layout.space != self._searcher.space:
            raise ValueError(
                "'param_space': expected the space of the earlier experiment, because this "
                "HypergradSearch holds its results; make a new one for another space"
            )
        self._param_space = config
        if self._searcher is None:
            self._set_up(layout)
        else:
            self._layout = layout
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Take over the limit of a `ConcurrencyLimiter`: here paused trials do not count."""
        self.max_concurrent = max_concurrent
        return True

    # Suggestions

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The config of a new trial, or `None` while as many run as may."""
        if self._searcher is None or self._layout is None:
            raise ValueError(
                UNDEFINED_SEARCH_SPACE.format(cls=type(self).__name__, space="param_space")
            )
        if not self._metric or not self._mode:
            raise ValueError(
                UNDEFINED_METRIC_MODE.format(
                    cls=type(self).__name__, metric=self._metric, mode=self._mode
                )
            )
        running = len(self._live.keys() - self._paused)
        if self.max_concurrent and running >= self.max_concurrent:
            return None
        suggestion = self._searcher.ask()
        self._numbers[trial_id] = suggestion.number
        self._live[trial_id] = {}
        return self._layout.to_ray(suggestion.config)

    def on_pause(self, trial_id: str) -> None:
        """A scheduler paused a trial: it no longer counts as running."""
        if trial_id in self._live:
            self._paused.add(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """A paused trial runs again."""
        self._paused.discard(trial_id)

    # Results

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember the last report of a trial: Ray may end the trial without repeating it."""
        try:
            self._note_result(trial_id, result)
        except Exception:
            logger.exception("Trial %s: a report was not understood.", trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the searcher what came of a trial.

        Without a result and without an error (a trial that was stopped while it was paused) the
        last report counts. A trial that never reported is forgotten.
        """
        try:
            self._complete(trial_id, result, error)
        except Exception:
            logger.exception("Trial %s: its result was not passed to the searcher.", trial_id)
            self._end(trial_id)

    def _note_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if trial_id in self._live and self._metric in result:
            # Ray may end the trial without repeating its result.
            self._live[trial_id] = self._read_result(result)

    def _read_result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What matters in a flat result, as plain JSON data."""
        return Report(
            value=_number(result.get(self._metric or "")),
            gradient=_under(result, f"{RESERVED}/gradient"),
            gradient_error=_number(result.get(f"{RESERVED}/gradient_error")),
            config=_under(result, f"{RESERVED}/config"),
            cost=_number(result.get(f"{RESERVED}/cost", result.get("time_total_s"))),
            resource=_number(result.get(f"{RESERVED}/resource", result.get("training_iteration"))),
        ).to_json()

    def _complete(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool) -> None:
        if self._searcher is None or self._layout is None:
            return
        if trial_id not in self._live:
            if trial_id not in self._numbers:
                self._adopt(trial_id, result, failed)
            return
        last = self._live[trial_id]
        if result is not None and self._metric in result:
            last = self._read_result(result)
        elif failed or (result and not last):
            # It raised, or it reported, but never the metric.
            last = {"value": None}
        number = self._numbers[trial_id]
        suggestion = next((s for s in self._searcher.pending if s.number == number), None)
        if suggestion is None or not last:
            self._end(trial_id)
            return
        self._tell(trial_id, number, suggestion.config, last)
        self._live.pop(trial_id, None)
        self._paused.discard(trial_id)

    def _adopt(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool) -> None:
        """A trial that we did not suggest, whose config is in its result.

        `restart_errored` makes such trials, and so does a kill between two of Ray's state files.
        """
        assert self._searcher is not None
        assert self._layout is not None
        if failed or result is None or self._metric not in result:
            return
        flat = self._layout.from_ray(_under(result, "config"))
        config = self._searcher.space.validate(flat)
        self._tell(trial_id, None, config, self._read_result(result))
        # Known from now on, so that a second completion is not counted twice.
        self._numbers[trial_id] = -1

    def _tell(
        self, trial_id: str, number: int | None, config: Mapping[str, Any], last: Mapping[str, Any]
    ) -> None:
        assert self._searcher is not None
        assert self._layout is not None
        report = Report.from_json(last)
        observation, problems = observe(
            self._searcher.space,
            config,
            replace(
                report,
                gradient=self._layout.from_ray(report.gradient or {}, of=config),
                config=self._layout.from_ray(report.config or {}, of=config),
            ),
            maximise=self._mode == "max",
            number=number,
        )
        known = {_first(path) for path in self._searcher.space.domains}
        for key in report.gradient or {}:
            if _first(key) not in known:
                problems[key] = f"a gradient entry is ignored: {key!r} is no hyperparameter"
        self._warn(trial_id, problems)
        self._searcher.tell(observation)

    def _end(self, trial_id: str) -> None:
        """A trial is over without a result: its suggestion is not pending any more."""
        self._live.pop(trial_id, None)
        self._paused.discard(trial_id)
        if self._searcher is not None and trial_id in self._numbers:
            self._searcher.forget(self._numbers[trial_id])

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Tell the searcher of a point that was evaluated elsewhere.

        **Arguments:**

        - `parameters`: a config as Ray keeps it (`Trial.config`), nested or flat; constants and
          keys that are not searched are ignored.
        - `value`: the metric, in the direction of `mode`.
        - `error`, `pruned`: a point that failed, or that was stopped early.
        - `intermediate_values`: ignored.

        **Raises:** `ValueError` naming the key if a value is missing or outside its domain, or if
        space or mode are not known yet.
        """
        if self._searcher is None or self._layout is None:
            raise ValueError(
                "add_evaluated_point needs the space: give it to HypergradSearch(space=...)"
            )
        if self._mode is None:
            raise ValueError("add_evaluated_point needs the mode: HypergradSearch(mode=...)")
        space = self._searcher.space
        observation, _ = observe(
            space,
            space.validate(self._layout.from_ray(parameters)),
            Report(None if error else _number(value)),
            maximise=self._mode == "max",
            status="pruned" if pruned else "complete",
        )
        self._searcher.tell(observation)

    # State

    def get_state(self) -> dict[str, Any]:
        """Everything that was suggested and told, as plain JSON data."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "metric": self._metric,
            "mode": self._mode,
            "max_concurrent": self.max_concurrent,
            "param_space": None if self._param_space is None else _encode(self._param_space),
            "searcher": None if self._searcher is None else self._searcher.state_dict(),
            "numbers": dict(self._numbers),
            "live": copy.deepcopy(self._live),
            "paused": sorted(self._paused),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state of `get_state`.

        **Raises:** `ValueError` if it is of another format, or of another searcher or space.
        """
        if state.get("format") != _FORMAT or state.get("version") != _VERSION:
            raise ValueError(
                f"state: expected {_FORMAT!r} version {_VERSION}, received "
                f"{state.get('format')!r} version {state.get('version')!r}"
            )
        # Ray pickles us before it tells us the space, so after a restore the space is here.
        if self._searcher is None and state["param_space"] is not None:
            self._param_space = _decode(state["param_space"])
            self._set_up(_read_layout(self._param_space))
        if state["searcher"] is not None:
            self.searcher_.load_state_dict(state["searcher"])
        self._metric = state["metric"] or self._metric
        self._mode = state["mode"] or self._mode
        self.max_concurrent = state["max_concurrent"]
        self._numbers = dict(state["numbers"])
        self._live = copy.deepcopy(state["live"])
        self._paused = set(state["paused"])

    def save(self, checkpoint_path: str) -> None:
        """Write the state to a file. Problems are logged: an exception here would end the run."""
        try:
            with open(checkpoint_path, "w", encoding="utf-8") as file:
                json.dump(self.get_state(), file)
        except Exception:
            logger.exception("The searcher's state was not saved; the previous one is kept.")
            if os.path.exists(checkpoint_path):
                os.remove(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Load what `save` wrote.

        **Raises:** `ValueError` if the file is damaged or of another search.
        """
        with open(checkpoint_path, encoding="utf-8") as file:
            try:
                state = json.load(file)
            except ValueError as error:
                raise ValueError(
                    f"state: expected a searcher's state, but {checkpoint_path} is truncated or "
                    f"damaged ({error})"
                ) from None
        self.set_state(state)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Called by Ray now and then. The previous file is kept as a backup."""
        path = os.path.join(checkpoint_dir, self.CKPT_FILE_TMPL.format(session_str))
        try:
            if os.path.exists(path):
                shutil.copyfile(path, path + ".copy")
                os.replace(path + ".copy", path + ".backup")
        except OSError:
            logger.exception("The backup of the searcher's state was not written.")
        super().save_to_dir(checkpoint_dir, session_str)

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Called by Ray at a restore: the newest state, or its backup if that is damaged.

        If neither can be read this logs an error and begins with an empty history. To raise would
        be worse: Ray would then start the whole experiment over, with one sample.
        """
        names = sorted(
            (n for n in os.listdir(checkpoint_dir) if n.startswith("searcher-state-")),
            key=lambda n: (n.removesuffix(".backup"), not n.endswith(".backup")),
            reverse=True,
        )
        for name in names:
            if not name.endswith((".pkl", ".pkl.backup")):
                continue
            try:
                self.restore(os.path.join(checkpoint_dir, name))
            except Exception as error:
                logger.error("%s cannot be used: %s", name, error)
                continue
            return
        logger.error("No state of the searcher in %s: the search begins anew.", checkpoint_dir)


def _first(path: str) -> str:
    return str(path).split("/")[0]


def _under(result: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The part of a flat result below a key, with plain values."""
    start = prefix + "/"
    return {
        key[len(start) :]: value
        for key, value in result.items()
        if isinstance(key, str) and key.startswith(start)
    }


# Ray's own domains as JSON, so that a state does not depend on pickles of their classes.


def _encode(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {"dict": [[_encode(key), _encode(value)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [_encode(item) for item in tree]}
    if isinstance(tree, ray_domains.Categorical):
        return {"choice": [_encode(item) for item in tree.categories]}
    if isinstance(tree, ray_domains.Float | ray_domains.Integer):
        sampler, step = _sampler(tree)
        kind = "float" if isinstance(tree, ray_domains.Float) else "int"
        return {kind: [tree.lower, tree.upper, isinstance(sampler, ray_domains.LogUniform), step]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise ValueError(f"expected plain values after Ray's placeholders, received {tree!r}")


def _decode(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    (kind, content), *_ = tree.items()
    if kind == "dict":
        return {_decode(key): _decode(value) for key, value in content}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decode(item) for item in content)
    if kind == "choice":
        return tune.choice([_decode(item) for item in content])
    low, high, log, step = content
    domain = (ray_domains.Float if kind == "float" else ray_domains.Integer)(low, high)
    domain = domain.loguniform() if log else domain.uniform()
    return domain if step is None else domain.quantized(step)
