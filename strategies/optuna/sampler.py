"""Any of our searchers as a sampler of Optuna."""

import functools
import math
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from strategies.arguments import integer
from strategies.intake import Intake
from strategies.observation import Observation, Suggestion
from strategies.optuna.branches import Asked
from strategies.optuna.names import Names, names_found
from strategies.optuna.parameters import Coordinate, from_distribution
from strategies.optuna.patience import patiently
from strategies.optuna.processes import OtherProcesses, holder
from strategies.optuna.shared import SharedParameters
from strategies.optuna.study_view import StudyView, context_of, point_of
from strategies.optuna.trial_cache import TrialCache
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace

#: Seconds to wait for the suggestions of other processes, and between two looks.
_PATIENCE = 5.0
_PAUSE = 0.01
#: Seconds for a later trial to keep what it was given, or to make room.
_UNDECIDED = 5.0
#: Looks at what others have stored meanwhile, where one process may have overtaken another.
_SECOND_LOOKS = 10


class HypergradSampler(BaseSampler):
    """Any of our searchers as a sampler of Optuna.

    **Arguments:**

    - `searcher`: a searcher; or a function `(space, *, seed) -> searcher`, such as a searcher's
      class or a `functools.partial` of it. Default: `AutoSearcher`, and for studies with several
      directions `MultiObjectiveSearcher`.
    - `space`: where to search. Default: the parameters, with their distributions, that all complete
      trials so far have in common, and those whose presence an earlier discrete one explains
      (`if kernel == "poly"`); until there are any, and for other parameters, values are drawn at
      random. Any name, range and choice will do. A range that changes is the newest one; a
      parameter that is new counts after ten trials, and once half of all have it.
    - `seed`: an integer; with the number of a trial it decides all randomness.
    - `constraints_func`: from a finished trial to its constraints, feasible when none is above 0,
      as Optuna's own samplers take it. What `trial.set_constraint` says counts as well.
    - `context`: what is known of the task, for a `BayesSearcher` with a space of contexts: a
      mapping, or a function that finds it from a new trial (its `user_attrs`, as
      `study.enqueue_trial({}, user_attrs=...)` and `study.user_attrs` give them).

    Value and gradient are turned around for studies that maximise. Failed trials (an exception,
    NaN) are failed observations; pruned ones come with their last intermediate value; those that
    run elsewhere are pending. See "When trials fail" in the documentation.

    Threads (`n_jobs`) share the sampler and see each other's suggestions; so do processes that
    share a storage: a trial waits for the suggestions of those that were started before it by other
    processes, at most five seconds. Who takes longer, or has given up waiting, looks again after
    storing a suggestion, and makes another one if somebody else has the same.
    """

    def __init__(
        self,
        *,
        searcher: Searcher | Callable[..., Searcher] | None = None,
        space: SearchSpace | Mapping[str, Any] | None = None,
        seed: int = 0,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        context: Mapping[str, Any] | Callable[[FrozenTrial], Mapping[str, Any]] | None = None,
    ) -> None:
        if isinstance(searcher, Searcher):
            if space is not None:
                raise ValueError(
                    "'space': expected nothing beside a searcher that is built already"
                )
            space = searcher.space
        if not (searcher is None or isinstance(searcher, Searcher) or callable(searcher)):
            raise ValueError(
                f"'searcher': expected a searcher, or its class, received {searcher!r:.80}"
            )
        if constraints_func is not None and not callable(constraints_func):
            raise ValueError(
                f"'constraints_func': expected a function, received {constraints_func!r:.80}"
            )
        if context is not None and not isinstance(context, Mapping) and not callable(context):
            raise ValueError(
                f"'context': expected a mapping or a function, received {context!r:.80}"
            )
        self._context = context
        self._constraints = constraints_func
        self._make = searcher
        self._seed = integer("seed", seed, 0)
        self._lock = threading.RLock()
        self._names = None if space is None else Names(SearchSpace.of(space))
        self._searcher: Searcher | None = None
        self._trials = TrialCache()
        self._shared = SharedParameters()
        self._asked = Asked({}, {})
        self._found: Names | None = None
        self._others = OtherProcesses()
        self._view: StudyView | None = None
        if self._names is not None and searcher is not None:
            self._set_up(self._names, 1)

    #: What was pickled before there were any has none.
    _context: Mapping[str, Any] | Callable[[FrozenTrial], Mapping[str, Any]] | None = None
    _constraints: Callable[[FrozenTrial], Sequence[float]] | None = None
    _asked = Asked({}, {})

    def __getstate__(self) -> dict[str, Any]:
        # What is known of the trials is found again by a look at the study.
        state = self.__dict__ | {
            "_trials": TrialCache(),
            "_shared": SharedParameters(),
            "_others": OtherProcesses(),
            "_view": None,
            "_searcher": None,
        }
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _set_up(self, names: Names, objectives: int) -> tuple[Searcher, StudyView]:
        """Searcher and view for a space; those there are if they were made for it."""
        space = names.space
        if self._searcher is None or self._view is None or self._view.names is not names:
            make = self._make
            if make is None:
                from strategies.searchers import AutoSearcher, MultiObjectiveSearcher

                make = AutoSearcher if objectives == 1 else MultiObjectiveSearcher
            self._searcher = make if isinstance(make, Searcher) else make(space, seed=self._seed)
            self._view = StudyView(names, Intake(space, self._searcher.check))
        return self._searcher, self._view

    def reseed_rng(self) -> None:
        """Nothing to do: randomness belongs to the trial's number, whichever thread runs it."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that are suggested together."""
        if self._names is not None:
            return dict(self._names.offered)
        with self._lock:
            trials = patiently(lambda: self._trials.trials(study, trial))
            return self._shared.of(trials).distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The searcher's suggestion."""
        if not search_space:
            return {}
        patience = time.monotonic() + _PATIENCE
        while True:
            # One at a time: the next suggestion must see this one as pending.
            with self._lock:
                trials = patiently(lambda: self._trials.trials(study, trial))
                unheard = self._others.unheard(trials, trial)
                if time.monotonic() > patience:
                    self._others.give_up(unheard)
                if not self._others.worth_waiting(unheard):
                    names = self._names or self._find(self._shared.of(trials).within(search_space))
                    if names is None:
                        return {}
                    return self._suggest(
                        study, trial, trials, names, search_space, alone=not unheard
                    )
            time.sleep(_PAUSE)

    def _find(self, asked: Asked) -> Names | None:
        """The names of parameters that a study's trials ask for; `None` without any."""
        if asked != self._asked:
            self._asked = asked
            self._found = names_found(asked) if asked.distributions else None
        return self._found

    def _suggest(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        names: Names,
        search_space: dict[str, BaseDistribution],
        *,
        alone: bool,
    ) -> dict[str, Any]:
        objectives = len(study.directions)
        searcher, view = self._set_up(names, objectives)
        if objectives > 1 and not searcher.several_objectives:
            raise ValueError(
                f"'searcher': expected one for {objectives} objectives, such as "
                f"MultiObjectiveSearcher, received {type(searcher).__name__}"
            )
        propose = self._proposer(searcher, trial)
        suggestion = propose(trial.number, *view.look(study, trials, trial))
        view.keep(study, trial, suggestion)
        # A trial that was heard before this one may have changed its mind since.
        company = any(
            one.state == TrialState.RUNNING and one.number != trial.number for one in trials
        )
        for _ in range(_SECOND_LOOKS):
            # Both store before they look again, so that one of them sees the other.
            late = company or not alone or _is_late(trial)
            known = self._look_again(study, trial, names, view, suggestion) if late else None
            if known is None:
                break
            again = propose(trial.number, *known)
            if again.config == suggestion.config:
                break  # there is nothing else left
            suggestion = again
            view.keep(study, trial, suggestion)
        params = names.to_params(suggestion.config)
        return {name: value for name, value in params.items() if name in search_space}

    def _proposer(self, searcher: Searcher, trial: FrozenTrial) -> Callable[..., Suggestion]:
        """`propose`, for the context of a trial if there is one."""
        propose: Callable[..., Suggestion] = searcher.propose
        if self._context is None:
            return propose
        context = self._context(trial) if callable(self._context) else self._context
        if context is None:
            return propose
        searcher.expect_context(context)
        return functools.partial(propose, context=context)

    def _keep_context(self, study: Study, trial: FrozenTrial) -> None:
        """Store the context of a trial for which nothing was suggested, as all of it was fixed."""
        names = self._names or self._found
        point = None if names is None or context_of(trial) else point_of(trial, names)
        context = self._context(trial) if callable(self._context) else self._context
        if names is not None and point is not None and context is not None:
            given = Suggestion(trial.number, point.config, {"context": dict(context)}, point)
            with self._lock:
                self._set_up(names, len(study.directions))[1].keep(study, trial, given)

    def _look_again(
        self,
        study: Study,
        trial: FrozenTrial,
        names: Names,
        view: StudyView,
        suggestion: Suggestion,
    ) -> tuple[list[Observation], list[Suggestion]] | None:
        """What is known now, if another trial has the same suggestion."""
        patience = time.monotonic() + _UNDECIDED
        while True:
            trials = patiently(lambda: study.get_trials(deepcopy=False))
            history, pending = view.look(study, trials, trial)
            other = holder(names, suggestion, [*history, *pending])
            if other is None:
                return None
            # A later one that has not begun to use it looks again itself, and makes room.
            undecided = other > trial.number and not trials[other].params
            if not undecided or time.monotonic() > patience:
                return history, pending
            time.sleep(_PAUSE)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take note that it is of this process."""
        self._others.is_ours(trial)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value, for a parameter that is not suggested together with others.

        Optuna also asks for one whose suggested value it finds off the grid, by rounding errors.
        """
        names = self._names or self._found
        if names is not None and names.offered.get(param_name) == param_distribution:
            with self._lock:
                params = self._set_up(names, len(study.directions))[1].suggested(trial)
            if param_name in params:
                return params[param_name]
        name = zlib.crc32(param_name.encode())
        rng = np.random.default_rng([self._seed, trial.number, name])
        return _draw(param_distribution, rng)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Take note that it has ended, and of its constraints."""
        if state == TrialState.COMPLETE:
            fixed = trial.system_attrs.get("fixed_params")
            for name in set(fixed if isinstance(fixed, Mapping) else ()) - trial.params.keys():
                warnings.warn(
                    f"enqueue_trial: the objective did not ask for {name!r}, whose value was "
                    "ignored",
                    stacklevel=2,
                )
        if self._constraints is not None and state in (TrialState.COMPLETE, TrialState.PRUNED):
            found = [float(each) for each in self._constraints(trial)]
            patiently(
                lambda: study._storage.set_trial_system_attr(trial._trial_id, "constraints", found)
            )
        if self._context is not None and state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._keep_context(study, trial)
        with self._lock:
            self._trials.ended(study, trial)
            self._others.has_ended(trial)


def _is_late(trial: FrozenTrial) -> bool:
    """Whether others may have given up waiting for its suggestion, or are about to."""
    begun = trial.datetime_start
    return begun is None or (datetime.now() - begun).total_seconds() > _PATIENCE / 2


def _draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A random value of any distribution, the widest ones and the narrowest ones included."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    if not distribution.single():
        parameter = from_distribution(distribution, ("",), ())
        if isinstance(parameter, Coordinate):
            return parameter.stored(rng.random())[0]
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
