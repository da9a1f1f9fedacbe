"""Implicit differentiation: the hypergradient at a stationary point, by one linear solve."""

from hypergrad.implicit.curvature import Curvature as Curvature
from hypergrad.implicit.curvature import GaussNewton as GaussNewton
from hypergrad.implicit.curvature import Hessian as Hessian
from hypergrad.implicit.differentiable import implicit_solver as implicit_solver
from hypergrad.implicit.differentiation import ImplicitDifferentiation as ImplicitDifferentiation
from hypergrad.implicit.differentiation import ImplicitState as ImplicitState
from hypergrad.implicit.estimate import ErrorEstimate as ErrorEstimate
from hypergrad.implicit.optimality import KKT as KKT
from hypergrad.implicit.optimality import FixedPoint as FixedPoint
from hypergrad.implicit.optimality import ProximalStep as ProximalStep
from hypergrad.implicit.reduced import Reduced as Reduced
