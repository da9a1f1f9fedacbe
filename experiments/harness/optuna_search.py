"""Optuna's samplers on our search spaces: what experiments compare our searchers with."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from strategies.space import Int, Ordinal, SearchSpace

if TYPE_CHECKING:
    import optuna

#: Names of the samplers that `optuna_search` knows.
SAMPLERS = ("random", "TPE", "GP", "CMA-ES", "NSGA-II")


#: What a sampler needs beside Optuna.
_NEEDS = {"GP": "torch", "CMA-ES": "cmaes"}


def available(sampler: str) -> bool:
    """Whether what a sampler needs is installed: PyTorch for `"GP"`, `cmaes` for `"CMA-ES"`."""
    return sampler not in _NEEDS or importlib.util.find_spec(_NEEDS[sampler]) is not None


def optuna_search(
    sampler: str,
    space: SearchSpace,
    objective: Callable[[dict[str, Any]], float | Sequence[float]],
    trials: int,
    *,
    seed: int,
    objectives: int = 1,
    first: Sequence[Mapping[str, Any]] = (),
) -> list[Any]:
    """Run one of Optuna's samplers with its defaults (NSGA-II with a population of 20).

    Ordinals of a space without conditions are given to the sampler as integers, so that it knows
    their order.

    **Arguments:**

    - `sampler`: one of `SAMPLERS`.
    - `objective`: from a configuration to the value, or the values, to be minimised; a value that
      is not finite is a failed trial.
    - `objectives`: how many values there are.
    - `first`: configurations to begin with.

    **Returns:** What the objective returned, trial by trial.
    """
    import optuna

    from strategies.optuna import suggest
    from strategies.optuna.spaces import Names

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searched = space
    if plain := not any(domain.when for domain in space.domains.values()):
        searched = SearchSpace({path: _indexed(domain) for path, domain in space.domains.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            sampler=_sampler(sampler, seed), directions=["minimize"] * objectives
        )
    for config in first:
        flat = space.flatten(config)
        if plain:
            flat = {path: _to_index(space.domains[path], value) for path, value in flat.items()}
        study.enqueue_trial(Names(searched).to_params(searched.unflatten(flat)))
    results = []
    for _ in range(trials):
        trial = study.ask()
        config = suggest(trial, searched)
        if plain:
            flat = searched.flatten(config)
            config = space.unflatten(
                {path: _from_index(space.domains[path], value) for path, value in flat.items()}
            )
        result = objective(config)
        results.append(result)
        values = [result] if isinstance(result, int | float) else list(result)
        if all(-float("inf") < value < float("inf") for value in values):
            study.tell(trial, values)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return results


def _sampler(name: str, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    kinds: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "random": optuna.samplers.RandomSampler,
        "TPE": optuna.samplers.TPESampler,
        "GP": optuna.samplers.GPSampler,
        "CMA-ES": optuna.samplers.CmaEsSampler,
        # The default population of 50 would leave a hundred trials a single generation.
        "NSGA-II": partial(optuna.samplers.NSGAIISampler, population_size=20),
    }
    return kinds[name](seed=seed)


def _indexed(domain: Any) -> Any:
    return Int(0, len(domain.values) - 1) if isinstance(domain, Ordinal) else domain


def _to_index(domain: Any, value: Any) -> Any:
    return domain.index(value) if isinstance(domain, Ordinal) else value


def _from_index(domain: Any, value: Any) -> Any:
    return domain.values[value] if isinstance(domain, Ordinal) else value


__all__ = ["SAMPLERS", "available", "optuna_search"]
