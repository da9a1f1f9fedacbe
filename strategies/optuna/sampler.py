"""Any of our searchers as a sampler of Optuna."""

import itertools
import math
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from strategies.observation import Observation, Suggestion
from strategies.optuna.spaces import Names, space_from_optuna
from strategies.optuna.trial_cache import TrialCache
from strategies.optuna.trials import read_attribute, report_of, write_attribute
from strategies.searchers.base import Searcher
from strategies.space import Categorical, SearchSpace
from strategies.translate import Warner, observe

#: The system attribute of a trial that holds what was suggested for it.
SUGGESTION = "hypergrad:suggestion"


class _Known(NamedTuple):
    """What a trial means to a searcher: an observation if it has ended, or a suggestion."""

    trial: FrozenTrial
    observation: Observation | None
    pending: Suggestion | None
    #: Numbers of trials whose process died; this one takes their place, they have not failed.
    retried: tuple[int, ...]


@dataclass
class _Past:
    """What the trials that were looked at come to."""

    trials: Sequence[FrozenTrial] = ()
    seen: int = 0
    history: list[Observation] = field(default_factory=list)
    retried: set[int] = field(default_factory=set)


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
        self._names: Names | None = None
        self._searcher: Searcher | None = None
        self._trials = TrialCache()
        self._known: dict[int, _Known] = {}
        self._past = _Past()
        if space is not None:
            self._set_up(space)

    def __getstate__(self) -> dict[str, Any]:
        # What is known of the trials is found again by a look at the study.
        state = self.__dict__ | {"_trials": TrialCache(), "_known": {}, "_past": _Past()}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _set_up(self, space: SearchSpace) -> tuple[Searcher, Names]:
        """The searcher for a space; the one there is if it has this space already."""
        if self._searcher is not None and self._names is not None and self._names.space == space:
            return self._searcher, self._names
        make = self._make
        if make is None:
            from strategies.searchers import HypergradientSearcher

            make = HypergradientSearcher
        self._searcher = make if isinstance(make, Searcher) else make(space, seed=self._seed)
        self._names = Names(space)
        self._known = {}
        self._past = _Past()
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
        with self._lock:
            trials = list(self._trials.trials(study, trial))
        common = intersection_search_space(trials, include_pruned=True)
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
            history, pending = self._look_around(study, trial, names)
            suggestion = searcher.propose(trial.number, history, pending)
            stored = {"config": space.to_json(suggestion.config), "note": dict(suggestion.note)}
            write_attribute(
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

    def after_trial(
        self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Take note that it has ended."""
        with self._lock:
            self._trials.ended(study, trial)

    # Our side

    def _look_around(
        self, study: Any, current: FrozenTrial, names: Names
    ) -> tuple[list[Observation], list[Suggestion]]:
        """The study as the searcher sees it: what is known, and what is being evaluated."""
        maximise = study.direction == StudyDirection.MAXIMIZE
        trials = self._trials.trials(study, current)
        # A list that has only grown, by finished trials, is taken up where it ended.
        past = self._past = self._past if self._past.trials is trials else _Past(trials)
        pending: list[Suggestion] = []
        known = self._known
        for trial in itertools.islice(trials, past.seen, None):
            seen = known.get(trial._trial_id)
            if seen is None or not (seen.trial is trial or _same(seen.trial, trial)):
                seen = self._look(trial, names, maximise)
                if trial.datetime_complete is not None:
                    known[trial._trial_id] = seen
            past.retried.update(seen.retried)
            if seen.observation is not None:
                past.history.append(seen.observation)
            elif seen.pending is not None and seen.pending.number != current.number:
                pending.append(seen.pending)
        past.seen = len(trials)
        if not past.retried:
            return past.history.copy(), pending
        return (
            [one for one in past.history if one.number not in past.retried],
            [one for one in pending if one.number not in past.retried],
        )

    def _look(self, trial: FrozenTrial, names: Names, maximise: bool) -> _Known:
        running = trial.state == TrialState.RUNNING
        return _Known(
            trial,
            self._observation(trial, names, maximise) if trial.state.is_finished() else None,
            self._pending(trial, names) if running else None,
            tuple(trial.system_attrs.get("retry_history", ())),
        )

    def _suggestion(self, trial: FrozenTrial, names: Names) -> tuple[dict[str, Any], Any] | None:
        """What was suggested for a trial, if it was, in this space."""
        stored = read_attribute(SUGGESTION, trial.system_attrs)
        if stored is None:
            return None
        try:
            return names.space.from_json(stored["config"]), stored["note"]
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    def _pending(self, trial: FrozenTrial, names: Names) -> Suggestion | None:
        suggested = self._suggestion(trial, names)
        config = self._config(trial, names)
        if config is None:
            return None if suggested is None else Suggestion(trial.number, *suggested)
        return Suggestion(trial.number, config, self._note(config, suggested))

    def _config(self, trial: FrozenTrial, names: Names) -> dict[str, Any] | None:
        """The configuration that a trial really has: enqueued and fixed values are the user's."""
        try:
            return names.space.validate(names.from_params(trial.params))
        except ValueError:
            return None

    @staticmethod
    def _note(config: Any, suggested: tuple[dict[str, Any], Any] | None) -> Mapping[str, Any]:
        """The searcher's remark, unless the configuration became another than it suggested."""
        return suggested[1] if suggested is not None and suggested[0] == config else {}

    def _observation(self, trial: FrozenTrial, names: Names, maximise: bool) -> Observation | None:
        config = self._config(trial, names)
        if config is None:
            return None
        observation, problems = observe(
            names.space,
            config,
            report_of(trial),
            maximise=maximise,
            number=trial.number,
            note=self._note(config, self._suggestion(trial, names)),
            status="pruned" if trial.state == TrialState.PRUNED else "complete",
        )
        self._warn(trial.number, problems)
        return observation


def _same(known: FrozenTrial, trial: FrozenTrial) -> bool:
    """Whether a storage that makes its trials anew, or another study, has made this one again."""
    ended = known.datetime_complete == trial.datetime_complete
    return ended and known.number == trial.number


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
