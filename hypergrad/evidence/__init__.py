"""Tuning without validation data: the evidence of a model, by Laplace's approximation."""

from hypergrad.evidence.bounds import KFAC, BlockDiagonal, Bound, Diagonal, Exact, Subsets
from hypergrad.evidence.estimator import LaplaceEvidence
from hypergrad.evidence.linearised import Linearised
from hypergrad.evidence.problem import BayesianModel, EvidenceProblem

__all__ = [
    "KFAC",
    "BayesianModel",
    "BlockDiagonal",
    "Bound",
    "Diagonal",
    "EvidenceProblem",
    "Exact",
    "LaplaceEvidence",
    "Linearised",
    "Subsets",
]
