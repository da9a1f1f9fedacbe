"""Hyperparameters as a function of time and of the state of training, learned from instances."""

from hypergrad.policy.features import Features, TrainingFeatures
from hypergrad.policy.instances import InstancesProblem, InstancesState, OverInstances
from hypergrad.policy.judge import Judgement, judge
from hypergrad.policy.linear import LinearPolicy, Range
from hypergrad.policy.step import PolicyState, PolicyStep
from hypergrad.policy.unseen import Unseen

__all__ = [
    "Features",
    "InstancesProblem",
    "InstancesState",
    "Judgement",
    "LinearPolicy",
    "OverInstances",
    "PolicyState",
    "PolicyStep",
    "Range",
    "TrainingFeatures",
    "Unseen",
    "judge",
]
