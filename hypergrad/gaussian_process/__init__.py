"""Gaussian processes whose hyperparameters are learned from training data, by four inferences."""

from hypergrad.gaussian_process.estimator import SiteEstimator, SiteState
from hypergrad.gaussian_process.expectation_propagation import ExpectationPropagation
from hypergrad.gaussian_process.kernels import matern52, squared_exponential
from hypergrad.gaussian_process.laplace import LaplaceGP
from hypergrad.gaussian_process.likelihoods import Gaussian, Likelihood, Probit
from hypergrad.gaussian_process.problem import GPProblem
from hypergrad.gaussian_process.regression import LeaveOneOut, MarginalLikelihood, RegressionState
from hypergrad.gaussian_process.sites import Sites
from hypergrad.gaussian_process.variational import VariationalGP

__all__ = [
    "ExpectationPropagation",
    "GPProblem",
    "Gaussian",
    "LaplaceGP",
    "LeaveOneOut",
    "Likelihood",
    "MarginalLikelihood",
    "Probit",
    "RegressionState",
    "SiteEstimator",
    "SiteState",
    "Sites",
    "VariationalGP",
    "matern52",
    "squared_exponential",
]
