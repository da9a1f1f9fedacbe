"""Hypernetworks: a network that answers with trained weights."""

from hypergrad.hypernetwork.estimator import Hypernetwork as Hypernetwork
from hypergrad.hypernetwork.estimator import HypernetworkState as HypernetworkState
from hypergrad.hypernetwork.estimator import Normal as Normal
from hypergrad.hypernetwork.estimator import ResponseNetwork as ResponseNetwork
from hypergrad.hypernetwork.estimator import Uniform as Uniform
