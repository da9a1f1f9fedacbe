"""Optuna's face: the same searchers as `optuna.create_study(sampler=...)`.

```python
import optuna
from strategies.optuna import HypergradSampler, report, suggest
from strategies.space import Categorical, Float, SearchSpace

space = SearchSpace(
    {"l2": Float(1e-6, 1e2, log=True, shape=(64,)), "scale": Categorical(["none", "standard"])}
)


def objective(trial):
    config = suggest(trial, space)
    loss, gradient = ...  # gradient: {"l2": d loss / d l2}, or nothing
    return report(trial, loss, gradient)


study = optuna.create_study(sampler=HypergradSampler(space=space, seed=0))
study.optimize(objective, n_trials=20)
```

An objective that calls `trial.suggest_float` and friends by itself, as every Optuna script does,
works as well: without `space` the sampler searches what all trials so far have in common.

The sampler holds no state. It rebuilds the searcher's history from the study's trials, derives all
randomness from the seed and the trial's number, and keeps the searcher's remarks as attributes of
the trials. So a study that is loaded again, from whatever storage and by whatever process,
continues as if it had not been interrupted.
"""

import itertools
import json
import logging
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from strategies.observation import Observation, Report, Suggestion
from strategies.observation import report as _report
from strategies.searchers.base import Searcher
from strategies.space import Categorical, Constant, Domain, Float, Int, Ordinal, SearchSpace
from strategies.translate import Warner, observe

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.samplers import BaseSampler
    from optuna.search_space import intersection_search_space
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.optuna needs Optuna: pip install "hypergrad-engine[optuna]"'
    ) from error

logger = logging.getLogger(__name__)

#: The attribute of a trial that holds its report, and what its suggestion was.
REPORT = "hypergrad"
SUGGESTION = "hypergrad:suggestion"

#: Longer values are split: MySQL keeps an attribute in a column of 64 KiB.
_CHUNK = 60_000


# -- spaces ----------------------------------------------------------------------------------


def space_to_optuna(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's distributions of a space, by parameter name.

    The name of a hyperparameter is its path, `"model/width"`; the entries of an array are
    `"l2[0]"`, `"l2[1]"`, ..., or `"l2[0][1]"`. Choices that are not `None`, a bool, a number or a
    string are represented by their text, because Optuna's storages do not bring tuples and lists
    back as they were; ordinals become categoricals; constants have no parameter.

    **Returns:** All distributions, those of conditional hyperparameters too.

    **Raises:** `ValueError` naming the key for what Optuna cannot express: a logarithmic grid.
    """
    return _Names(space).distributions


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


class _Names:
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


# -- trials ----------------------------------------------------------------------------------


def suggest(trial: Any, space: SearchSpace) -> dict[str, Any]:
    """The trial's configuration: all hyperparameters of a space, asked for one by one.

    Works with every sampler of Optuna, not only with ours.

    **Arguments:**

    - `trial`: the `optuna.Trial`.
    - `space`: where to search.

    **Returns:** A nested dict of plain values, lists for arrays, constants included; the
    hyperparameters whose conditions do not hold are absent.
    """
    names = _Names(space)
    flat: dict[str, Any] = {}
    waiting = list(space.domains)
    while waiting:
        path = next(p for p in waiting if not any(q in waiting for q in space.domains[p].when))
        waiting.remove(path)
        if not space.is_active(path, flat):
            continue
        domain = space.domains[path]
        if isinstance(domain, Constant):
            flat[path] = domain.value
            continue
        params = {name: _ask(trial, name, names.distributions[name]) for name in names.names[path]}
        flat[path] = names.from_params(params)[path]
    return space.validate(flat)


def _ask(trial: Any, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def report(
    trial: Any,
    value: Any,
    gradient: Any = None,
    *,
    gradient_error: Any = None,
    config: Mapping[str, Any] | None = None,
    cost: Any = None,
    resource: Any = None,
    info: Mapping[str, Any] | None = None,
) -> float:
    """Hand a trial's hypergradient over, and return the value for the objective to return.

    Stored as the user attribute `hypergrad` of the trial: plain JSON data, in several attributes if
    it is long. Without a gradient the trial still counts.

    **Arguments:**

    - `trial`: the `optuna.Trial`.
    - `value`: the objective, a scalar; or a `hypergrad.Hypergradient`, which brings its gradient
      and its residuals along.
    - `gradient`: derivative of `value` with respect to the hyperparameters' natural values, keyed
      by their names, nested or flat, partial.
    - `gradient_error`, `config`, `cost`, `resource`, `info`: as in `strategies.observation.report`.
      The searcher takes the trial's duration in seconds for the cost if it is not given.

    **Returns:** The value as a float, NaN if there is none: Optuna takes that for a failure.

    **Raises:** `ValueError` if the value is not a scalar or the gradient not a mapping.
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
    _write(given.to_json(), REPORT, trial.set_user_attr)
    return math.nan if given.value is None else given.value


def _write(content: Any, key: str, put: Callable[[str, Any], None]) -> None:
    text = json.dumps(content)
    if len(text) <= _CHUNK:
        put(key, content)
        return
    for i, start in enumerate(range(0, len(text), _CHUNK)):
        put(f"{key}:{i}", text[start : start + _CHUNK])


def _read(key: str, attributes: Mapping[str, Any]) -> Any:
    if key in attributes:
        return attributes[key]
    parts: list[str] = []
    while (part := attributes.get(f"{key}:{len(parts)}")) is not None:
        parts.append(part)
    return json.loads("".join(parts)) if parts else None


# -- the sampler -----------------------------------------------------------------------------


class HypergradSampler(BaseSampler):
    """Any of our searchers as a sampler of Optuna, for one objective.

    **Arguments:**

    - `searcher`: a searcher; or a function `(space, *, seed) -> searcher`, such as a searcher's
      class or a `functools.partial` of it. Default: the hypergradient searcher.
    - `space`: where to search. Default: the parameters, with their distributions, that all complete
      trials so far have in common; until there are any, and for other parameters, values are drawn
      at random.
    - `seed`: an integer; with the number of a trial it decides all randomness.

    Value and gradient are turned around for studies that maximise. Failed trials (an exception,
    NaN) are failed observations; pruned ones come with their last intermediate value; those that
    run elsewhere are pending. See "When trials fail" in the documentation.

    Threads (`n_jobs`) share the sampler and see each other's suggestions; so do processes that
    share a storage.
    """

    def __init__(
        self,
        *,
        searcher: Searcher | Callable[..., Searcher] | None = None,
        space: SearchSpace | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(searcher, Searcher):
            if space is not None:
                raise ValueError(
                    "'space': expected nothing beside a searcher that is built already"
                )
            space = searcher.space
        self._make = searcher
        self._seed = seed
        self._lock = threading.RLock()
        self._warn = Warner()
        self._space = space
        self._names: _Names | None = None
        self._searcher: Searcher | None = None
        self._known: dict[Any, Observation | None] = {}
        if space is not None:
            self._set_up(space)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _set_up(self, space: SearchSpace) -> tuple[Searcher, _Names]:
        """The searcher for a space; the one there is if it has this space already."""
        if self._searcher is not None and self._names is not None and self._names.space == space:
            return self._searcher, self._names
        make = self._make
        if make is None:
            from strategies.searchers import HypergradientSearcher

            make = HypergradientSearcher
        self._searcher = make if isinstance(make, Searcher) else make(space, seed=self._seed)
        self._names = _Names(space)
        self._known = {}
        return self._searcher, self._names

    # Optuna's side

    def reseed_rng(self) -> None:
        """Nothing to do: randomness belongs to the trial's number, whichever thread runs it."""

    def infer_relative_search_space(
        self, study: Any, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that are suggested together."""
        if study._is_multi_objective():
            return {}
        if self._space is not None:
            with self._lock:
                return dict(self._set_up(self._space)[1].distributions)
        common = intersection_search_space(study.get_trials(deepcopy=False), include_pruned=True)
        return {name: d for name, d in common.items() if not d.single()}

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The searcher's suggestion."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        # One at a time: the next suggestion must see this one as pending.
        with self._lock:
            try:
                space = self._space or space_from_optuna(search_space)
            except ValueError as error:
                self._warn(trial.number, {"space": f"parameters are drawn at random: {error}"})
                return {}
            searcher, names = self._set_up(space)
            history, pending = self._trials(study, trial, names)
            suggestion = searcher.propose(trial.number, history, pending)
            stored = {"config": space.to_json(suggestion.config), "note": dict(suggestion.note)}
            _write(
                stored,
                SUGGESTION,
                lambda key, part: study._storage.set_trial_system_attr(trial._trial_id, key, part),
            )
        params = names.to_params(suggestion.config)
        return {
            name: _original(value, search_space[name])
            for name, value in params.items()
            if name in search_space
        }

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for a parameter that is not suggested together with others."""
        self._raise_error_if_multi_objective(study)
        name = zlib.crc32(param_name.encode())
        rng = np.random.default_rng([self._seed, trial.number, name])
        return _draw(param_distribution, rng)

    # Our side

    def _trials(
        self, study: Any, current: FrozenTrial, names: _Names
    ) -> tuple[list[Observation], list[Suggestion]]:
        """The study as the searcher sees it: what is known, and what is being evaluated."""
        maximise = study.direction == optuna.study.StudyDirection.MAXIMIZE
        history: list[Observation] = []
        pending: list[Suggestion] = []
        for trial in study.get_trials(deepcopy=False):
            if trial.number == current.number:
                continue
            if trial.state == TrialState.RUNNING:
                suggestion = self._pending(trial, names)
                if suggestion is not None:
                    pending.append(suggestion)
            elif trial.state.is_finished():
                key = (trial._trial_id, trial.number, trial.datetime_complete)
                if key not in self._known:
                    self._known[key] = self._observation(trial, names, maximise)
                observation = self._known[key]
                if observation is not None:
                    history.append(observation)
        return history, pending

    def _suggestion(self, trial: FrozenTrial, names: _Names) -> tuple[dict[str, Any], Any] | None:
        """What was suggested for a trial, if it was, in this space."""
        stored = _read(SUGGESTION, trial.system_attrs)
        if stored is None:
            return None
        try:
            return names.space.from_json(stored["config"]), stored["note"]
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    def _pending(self, trial: FrozenTrial, names: _Names) -> Suggestion | None:
        suggested = self._suggestion(trial, names)
        config = self._config(trial, names)
        if config is None:
            return None if suggested is None else Suggestion(trial.number, *suggested)
        return Suggestion(trial.number, config, self._note(config, suggested))

    def _config(self, trial: FrozenTrial, names: _Names) -> dict[str, Any] | None:
        """The configuration that a trial really has: enqueued and fixed values are the user's."""
        try:
            return names.space.validate(names.from_params(trial.params))
        except ValueError:
            return None

    @staticmethod
    def _note(config: Any, suggested: tuple[dict[str, Any], Any] | None) -> Mapping[str, Any]:
        """The searcher's remark, unless the configuration became another than it suggested."""
        return suggested[1] if suggested is not None and suggested[0] == config else {}

    def _observation(self, trial: FrozenTrial, names: _Names, maximise: bool) -> Observation | None:
        config = self._config(trial, names)
        if config is None:
            return None
        value = None
        if trial.state == TrialState.COMPLETE:
            value = trial.value
        elif trial.state == TrialState.PRUNED and trial.last_step is not None:
            value = trial.intermediate_values[trial.last_step]
        stored = _read(REPORT, trial.user_attrs)
        given = Report(None) if stored is None else Report.from_json(stored)
        start, end = trial.datetime_start, trial.datetime_complete
        seconds = (end - start).total_seconds() if start and end else None
        report = Report(
            value=value,
            # The gradient belongs to the value that it was reported with.
            gradient=given.gradient if value == given.value else None,
            gradient_error=given.gradient_error,
            config=given.config,
            cost=seconds if given.cost is None else given.cost,
            resource=trial.last_step if given.resource is None else given.resource,
        )
        observation, problems = observe(
            names.space,
            config,
            report,
            maximise=maximise,
            number=trial.number,
            note=self._note(config, self._suggestion(trial, names)),
            status="pruned" if trial.state == TrialState.PRUNED else "complete",
        )
        self._warn(trial.number, problems)
        return observation


def _original(value: Any, distribution: BaseDistribution) -> Any:
    """The choice object that Optuna knows, and plain numbers of the kind that it expects."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[Categorical(list(distribution.choices)).index(value)]
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def _draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A random value of any distribution, the widest ones and the narrowest ones included."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution) and not distribution.log:
        count = (distribution.high - distribution.low) // distribution.step + 1
        return int(low + distribution.step * int(rng.integers(count)))
    if isinstance(distribution, IntDistribution):
        value = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return int(min(max(round(value), low), high))
    if step is not None:
        count = round((high - low) / step) + 1
        return float(min(low + step * int(rng.integers(count)), high))
    if distribution.log:
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))
    return float(rng.uniform(low, high))
