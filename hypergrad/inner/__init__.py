"""Inner solvers, behind one protocol: optax optimizers, jaxopt solvers, plain functions, Newton."""

from hypergrad.inner.base import InnerSolution as InnerSolution
from hypergrad.inner.base import InnerSolver as InnerSolver
from hypergrad.inner.convert import as_inner_solver as as_inner_solver
from hypergrad.inner.function_solver import FunctionSolver as FunctionSolver
from hypergrad.inner.jaxopt_solver import JaxoptSolver as JaxoptSolver
from hypergrad.inner.newton import Newton as Newton
from hypergrad.inner.optax_solver import OptaxSolver as OptaxSolver
