"""Any of our searchers as a sampler of Optuna."""

import logging
import math
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

from strategies.arguments import integer
from strategies.intake import Intake
from strategies.optuna.spaces import space_from_optuna
from strategies.optuna.study_view import StudyView
from strategies.optuna.trial_cache import TrialCache
from strategies.searchers.base import Searcher
from strategies.space import Categorical, SearchSpace

logger = logging.getLogger(__name__)


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
        self._seed = integer("seed", seed, 0)
        self._lock = threading.RLock()
        self._told_why = False
        self._space = space
        self._searcher: Searcher | None = None
        self._trials = TrialCache()
        self._view: StudyView | None = None
        if space is not None:
            self._set_up(space)

    def __getstate__(self) -> dict[str, Any]:
        # What is known of the trials is found again by a look at the study.
        state = self.__dict__ | {"_trials": TrialCache(), "_view": None, "_searcher": None}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _set_up(self, space: SearchSpace) -> tuple[Searcher, StudyView]:
        """Searcher and view for a space; those there are if they were made for it."""
        if self._searcher is None or self._view is None or self._view.space != space:
            make = self._make
            if make is None:
                from strategies.searchers import HypergradientSearcher

                make = HypergradientSearcher
            self._searcher = make if isinstance(make, Searcher) else make(space, seed=self._seed)
            self._view = StudyView(Intake(space, self._searcher.check))
        return self._searcher, self._view

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
                return dict(self._set_up(self._space)[1].names.distributions)
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
                if not self._told_why:
                    logger.warning(
                        "Trial %s: parameters are drawn at random: %s", trial.number, error
                    )
                self._told_why = True
                return {}
            searcher, view = self._set_up(space)
            trials = self._trials.trials(study, trial)
            suggestion = searcher.propose(trial.number, *view.look(study, trials, trial))
            view.keep(study, trial, suggestion)
        params = view.names.to_params(suggestion.config)
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
