"""Tuning without validation data: estimates of the risk of a fit, from the fit itself."""

from hypergrad.risk.divergence import divergence
from hypergrad.risk.problem import GCV, SURE
from hypergrad.risk.ridge import multi_task_ridge_risk

__all__ = ["GCV", "SURE", "divergence", "multi_task_ridge_risk"]
