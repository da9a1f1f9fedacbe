"""Many trials in one program: populations under `vmap`, rungs and population-based training."""

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
