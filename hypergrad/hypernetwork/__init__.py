"""Hypernetworks: a network that answers with trained weights."""

from hypergrad.hypernetwork.distribution import Normal as Normal
from hypergrad.hypernetwork.distribution import Uniform as Uniform
from hypergrad.hypernetwork.estimator import Hypernetwork as Hypernetwork
from hypergrad.hypernetwork.estimator import HypernetworkState as HypernetworkState
from hypergrad.hypernetwork.network import ResponseNetwork as ResponseNetwork
