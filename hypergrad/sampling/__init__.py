"""Inner problems that are samplers: the best response is a distribution, not a point."""

from hypergrad.sampling.implicit_diffusion import DiffusionState, ImplicitDiffusion
from hypergrad.sampling.langevin import Langevin
from hypergrad.sampling.problem import SamplingProblem

__all__ = ["DiffusionState", "ImplicitDiffusion", "Langevin", "SamplingProblem"]
