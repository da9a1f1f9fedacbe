"""Outer algorithms: what moves the hyperparameters, and the driver that runs any of them."""

from hypergrad.outer.alternating import Alternating
from hypergrad.outer.base import Batches, OuterAlgorithm, OuterInfo, OuterState
from hypergrad.outer.batches import FullBatch, Minibatches, Sampler
from hypergrad.outer.checkpoint import CheckpointError
from hypergrad.outer.constraints import Box, Budget, Constraint, L1Ball, ScaledSimplex, project
from hypergrad.outer.driver import run
from hypergrad.outer.f2sa import F2SA
from hypergrad.outer.guards import OverTuningWarning
from hypergrad.outer.hoag import HOAG
from hypergrad.outer.maid import MAID, Smoothness
from hypergrad.outer.quasi_newton import QuasiNewton
from hypergrad.outer.report import Progress, StepReport
from hypergrad.outer.result import Point, Result
from hypergrad.outer.retrain import RetrainGap, retrain_gap
from hypergrad.outer.saba import SABA
from hypergrad.outer.soba import SOBA

# Names of version 0.1.0, which `strategies` has as well.
Report, Simplex = StepReport, ScaledSimplex

__all__ = [
    "F2SA",
    "HOAG",
    "MAID",
    "SABA",
    "SOBA",
    "Alternating",
    "Batches",
    "Box",
    "Budget",
    "CheckpointError",
    "Constraint",
    "FullBatch",
    "L1Ball",
    "Minibatches",
    "OuterAlgorithm",
    "OuterInfo",
    "OuterState",
    "OverTuningWarning",
    "Point",
    "Progress",
    "QuasiNewton",
    "Result",
    "RetrainGap",
    "Sampler",
    "ScaledSimplex",
    "Smoothness",
    "StepReport",
    "project",
    "retrain_gap",
    "run",
]
