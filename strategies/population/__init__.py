"""Many trials in one program: populations under `vmap`, rungs and population-based training."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.population.bandit import PB2
    from strategies.population.evolution import Evolution
    from strategies.population.explore import Explore, FollowGradient, Perturb, Resample, Round
    from strategies.population.pbt import PBT
    from strategies.population.population import Population
    from strategies.population.progress import Progress
    from strategies.population.search import PopulationResult

__all__ = [
    "PB2",
    "PBT",
    "Evolution",
    "Explore",
    "FollowGradient",
    "Perturb",
    "Population",
    "PopulationResult",
    "Progress",
    "Resample",
    "Round",
]

# Imported on first use: a process that only keeps checkpoints, a trial of Ray, needs no JAX.
_HOMES = {
    "bandit": ["PB2"],
    "evolution": ["Evolution"],
    "explore": ["Explore", "FollowGradient", "Perturb", "Resample", "Round"],
    "pbt": ["PBT"],
    "population": ["Population"],
    "progress": ["Progress"],
    "search": ["PopulationResult"],
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
