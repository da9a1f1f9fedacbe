"""Linear solvers for inverse-Hessian-vector products, one method a file."""

from hypergrad.linear.base import IterativeSolver as IterativeSolver
from hypergrad.linear.base import LinearSolver as LinearSolver
from hypergrad.linear.bicgstab import BiCGStab as BiCGStab
from hypergrad.linear.cg import CG as CG
from hypergrad.linear.dense import Dense as Dense
from hypergrad.linear.dense import DensePreconditioner as DensePreconditioner
from hypergrad.linear.fallback import Fallback as Fallback
from hypergrad.linear.gmres import GMRES as GMRES
from hypergrad.linear.identity import Identity as Identity
from hypergrad.linear.minres import MINRES as MINRES
from hypergrad.linear.neumann import Neumann as Neumann
from hypergrad.linear.normal_cg import NormalCG as NormalCG
from hypergrad.linear.nystrom import Nystrom as Nystrom
from hypergrad.linear.nystrom import NystromPreconditioner as NystromPreconditioner
from hypergrad.linear.operator import LinearOperator as LinearOperator
from hypergrad.linear.operator import symmetric_operator as symmetric_operator
from hypergrad.linear.pcg import PCG as PCG
from hypergrad.linear.preconditioner import Diagonal as Diagonal
from hypergrad.linear.preconditioner import Jacobi as Jacobi
from hypergrad.linear.preconditioner import Preconditioner as Preconditioner
from hypergrad.linear.recycling_cg import RecyclingCG as RecyclingCG
from hypergrad.linear.solution import LinearSolution as LinearSolution
from hypergrad.linear.system import System as System
from hypergrad.linear.tuned import Tuned as Tuned
from hypergrad.linear.tuned import TunedState as TunedState
