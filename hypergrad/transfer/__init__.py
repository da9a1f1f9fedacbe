"""Tune small, run large: how initialisation and learning rates move with the size of a model."""

from hypergrad.transfer.atan2 import adam_atan2
from hypergrad.transfer.coordinates import CoordinateCheck, Probe, coordinate_check
from hypergrad.transfer.leaves import Leaf
from hypergrad.transfer.parametrization import Parametrization, infer
from hypergrad.transfer.rules import Exponents, Factors

__all__ = [
    "CoordinateCheck",
    "Exponents",
    "Factors",
    "Leaf",
    "Parametrization",
    "Probe",
    "adam_atan2",
    "coordinate_check",
    "infer",
]
