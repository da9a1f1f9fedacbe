"""The tree-structured Parzen estimator of Optuna, as a baseline behind our interface.

Bergstra, Bardenet, Bengio and Kégl, "Algorithms for hyper-parameter optimization" (NIPS 2011): the
better and the worse observations get a density each, and the candidate with the largest ratio of
the two is tried. The estimator is Optuna's own (`optuna.samplers.TPESampler`, its defaults, jointly
over all hyperparameters); a study in memory is built anew from the history for each suggestion, so
that the suggestion is a function of the history as everybody else's.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from strategies.arguments import integer
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Searcher
from strategies.space import Categorical, Domain, Float, Int, Ordinal, SearchSpace
from strategies.space.choices import Listed

if TYPE_CHECKING:
    from optuna import Trial


class TPESearcher(Searcher):
    """Optuna's tree-structured Parzen estimator.

    Values only: gradients and costs are not looked at. Pending suggestions count as bad ones ("the
    constant liar"), failed observations are left out, pruned ones rank behind all complete ones.
    Ordinals are searched by position; what Optuna has no distribution for (shares, ordered arrays,
    logarithmic grids) by its unit coordinates.

    **Arguments:**

    - `space`, `seed`, `first`: as for every searcher.
    - `startup`: observations that have not failed before the estimator takes over; the suggestions
      up to then are draws from the prior.

    **Raises:** `ImportError` with the line that installs Optuna, if it is missing.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Iterable[Mapping[str, Any]] = (),
        startup: int = 10,
    ):
        try:
            import optuna
        except ImportError as error:
            raise ImportError(
                'TPESearcher needs Optuna: pip install "hypergrad-engine[optuna]"'
            ) from error
        super().__init__(space, seed=seed, first=first)
        self.startup = integer("startup", startup, 1)
        self._optuna = optuna
        self._parameters = {
            path: _Parameters(path, domain)
            for path, domain in self.space.domains.items()
            if domain.tunable
        }

    def _propose(
        self, number: int, history: Sequence[Observation], pending: Sequence[Suggestion]
    ) -> Suggestion:
        if sum(item.status != "failed" for item in history) < self.startup:
            return Suggestion(number, self.space.sample(self.rng(number)), {"origin": "startup"})
        seed = int(self.rng(number).integers(2**32))
        study = self._study(history, pending, seed)
        trial = study.ask()

        def asked(path: str) -> Any:
            known = self._parameters.get(path)
            return self.space.domains[path].middle() if known is None else known.asked_of(trial)

        config = self.space.validate(self.space.active(asked))
        return Suggestion(number, config, {"origin": "model"})

    def _study(
        self, history: Sequence[Observation], pending: Sequence[Suggestion], seed: int
    ) -> Any:
        """What is known, as a study of Optuna."""
        optuna = self._optuna
        state = optuna.trial.TrialState
        trials = []
        for item in history:
            known = self._known(item.config)
            if item.status == "complete":
                trials.append(optuna.trial.create_trial(value=item.value, **known))
            elif item.status == "pruned" and item.value is not None:
                step = int(item.resource or 0)
                trials.append(
                    optuna.trial.create_trial(
                        state=state.PRUNED, intermediate_values={step: item.value}, **known
                    )
                )
        for suggestion in pending:
            known = self._known(suggestion.config)
            trials.append(optuna.trial.create_trial(state=state.RUNNING, **known))
        with _without_log():
            study = optuna.create_study(
                sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
            )
        study.add_trials(trials)
        return study

    def _known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        distributions: dict[str, Any] = {}
        for path, value in self.space.flatten(config).items():
            if path in self._parameters:
                parameters = self._parameters[path]
                params.update(zip(parameters.names, parameters.of(value), strict=True))
                distributions.update(parameters.distributions)
        return {"params": params, "distributions": distributions}


class _Parameters:
    """The parameters of Optuna that stand for one hyperparameter, and their values."""

    def __init__(self, path: str, domain: Domain):
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        self.domain = domain
        distribution: Any = FloatDistribution(0.0, 1.0)
        self.by_unit = False
        if isinstance(domain, Categorical):
            distribution = CategoricalDistribution(range(len(domain.choices)))
        elif isinstance(domain, Ordinal):
            distribution = IntDistribution(0, len(domain.values) - 1)
        elif isinstance(domain, Int) and not (domain.log and domain.step != 1):
            distribution = IntDistribution(
                domain.low, domain.high, log=domain.log, step=domain.step
            )
        elif isinstance(domain, Float) and not (domain.log and domain.step is not None):
            # The last value of the grid, which need not be the bound.
            high = float(np.max(domain.decode(np.ones(domain.size))))
            distribution = FloatDistribution(domain.low, high, log=domain.log, step=domain.step)
        else:
            self.by_unit = True
        count = domain.size if self.by_unit or isinstance(domain, Float) else 1
        self.names = [path] if count == 1 else [f"{path}[{i}]" for i in range(count)]
        self.distributions = dict.fromkeys(self.names, distribution)

    def of(self, value: Any) -> list[Any]:
        """The parameters' values for a value of the hyperparameter."""
        if self.by_unit:
            return self.domain.encode(value).tolist()
        if isinstance(self.domain, Listed):
            return [self.domain.index(value)]
        return np.ravel(value).tolist()

    def asked_of(self, trial: "Trial") -> Any:
        """The value of the hyperparameter that Optuna suggests."""
        domain = self.domain
        given = []
        for name, d in self.distributions.items():
            if isinstance(domain, Categorical):
                given.append(trial.suggest_categorical(name, d.choices))
            elif isinstance(domain, Ordinal) or (isinstance(domain, Int) and not self.by_unit):
                given.append(trial.suggest_int(name, d.low, d.high, log=d.log, step=d.step))
            else:
                given.append(trial.suggest_float(name, d.low, d.high, log=d.log, step=d.step))
        if self.by_unit:
            return domain.decode(np.array(given))
        if isinstance(domain, Listed):
            return domain.options[given[0]]
        if isinstance(domain, Float):
            return np.reshape(given, domain.shape).tolist()
        return given[0]


@contextmanager
def _without_log() -> Iterator[None]:
    """A study that lives for one suggestion is not announced."""
    logger = logging.getLogger("optuna.storages._in_memory")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
