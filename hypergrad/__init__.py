"""Hypergradients for bilevel hyperparameter optimization in JAX."""

from hypergrad.estimator import Estimator as Estimator
from hypergrad.estimator import FitInfo as FitInfo
from hypergrad.estimator import Hypergradient as Hypergradient
from hypergrad.estimator import HypergradientInfo as HypergradientInfo
from hypergrad.front import InaccurateHypergradientError as InaccurateHypergradientError
from hypergrad.front import InaccurateHypergradientWarning as InaccurateHypergradientWarning
from hypergrad.front import as_arrays as as_arrays
from hypergrad.front import hypergradient as hypergradient
from hypergrad.implicit import ImplicitDifferentiation as ImplicitDifferentiation
from hypergrad.inner import FunctionSolver as FunctionSolver
from hypergrad.inner import InnerSolution as InnerSolution
from hypergrad.inner import InnerSolver as InnerSolver
from hypergrad.inner import JaxoptSolver as JaxoptSolver
from hypergrad.inner import Newton as Newton
from hypergrad.inner import OptaxSolver as OptaxSolver
from hypergrad.inner import as_inner_solver as as_inner_solver
from hypergrad.linear.cg import CG as CG
from hypergrad.problem import BilevelProblem as BilevelProblem
