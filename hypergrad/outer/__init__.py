"""Outer algorithms: what moves the hyperparameters, and the driver that runs any of them."""

from hypergrad.outer.alternating import Alternating
from hypergrad.outer.base import OuterAlgorithm, OuterInfo, OuterState
from hypergrad.outer.batches import Batches, FullBatch, Minibatches, Sampler
from hypergrad.outer.bome import BOME
from hypergrad.outer.checkpoint import CheckpointError
from hypergrad.outer.constrained import ConstrainedProblem
from hypergrad.outer.constraints import Box, Budget, Constraint, L1Ball, ScaledSimplex, project
from hypergrad.outer.driver import run
from hypergrad.outer.dual_ascent import DualAscent, NuPI
from hypergrad.outer.extragradient import Extragradient
from hypergrad.outer.f2sa import F2SA
from hypergrad.outer.guards import OverTuningWarning
from hypergrad.outer.hoag import HOAG
from hypergrad.outer.maid import MAID, Smoothness
from hypergrad.outer.minimax import MinimaxProblem
from hypergrad.outer.mrbo import MRBO
from hypergrad.outer.optimality_report import OptimalityReport, optimality_report
from hypergrad.outer.paired import PairedBatches
from hypergrad.outer.pbgd import PBGD
from hypergrad.outer.quasi_newton import QuasiNewton
from hypergrad.outer.report import Progress, StepReport
from hypergrad.outer.result import Point, Result
from hypergrad.outer.retrain import RetrainGap, retrain_gap
from hypergrad.outer.saba import SABA
from hypergrad.outer.second_order import SecondOrderReport, second_order_report
from hypergrad.outer.soba import SOBA
from hypergrad.outer.srba import SRBA
from hypergrad.outer.stocbio import StocBiO
from hypergrad.outer.sustain import SUSTAIN
from hypergrad.outer.vrbo import VRBO

# Names of version 0.1.0, which `strategies` has as well.
Report, Simplex = StepReport, ScaledSimplex

__all__ = [
    "BOME",
    "F2SA",
    "HOAG",
    "MAID",
    "MRBO",
    "PBGD",
    "SABA",
    "SOBA",
    "SRBA",
    "SUSTAIN",
    "VRBO",
    "Alternating",
    "Batches",
    "Box",
    "Budget",
    "CheckpointError",
    "ConstrainedProblem",
    "Constraint",
    "DualAscent",
    "Extragradient",
    "FullBatch",
    "L1Ball",
    "Minibatches",
    "MinimaxProblem",
    "NuPI",
    "OptimalityReport",
    "OuterAlgorithm",
    "OuterInfo",
    "OuterState",
    "OverTuningWarning",
    "PairedBatches",
    "Point",
    "Progress",
    "QuasiNewton",
    "Result",
    "RetrainGap",
    "Sampler",
    "ScaledSimplex",
    "SecondOrderReport",
    "Smoothness",
    "StepReport",
    "StocBiO",
    "optimality_report",
    "project",
    "retrain_gap",
    "run",
    "second_order_report",
]
