"""Self-tuning networks: hyperparameters tuned while the weights are trained."""

from hypergrad.response.perturbation import Perturbation
from hypergrad.self_tuning.convert import SelfTuningModel, respond, to_self_tuning
from hypergrad.self_tuning.estimator import SelfTuning, SelfTuningState
from hypergrad.self_tuning.gating import SelfTuningLayer
from hypergrad.self_tuning.hyperparameters import Bounded, Discrete, Hyperparameters, Positive
from hypergrad.self_tuning.layers import (
    SelfTuningConv,
    SelfTuningEmbedding,
    SelfTuningLinear,
    SelfTuningLSTMCell,
    SelfTuningNorm,
    squared_norm,
)
from hypergrad.self_tuning.pytree import function_to_self_tuning
from hypergrad.self_tuning.schedule import Schedule
from hypergrad.self_tuning.training import Tuner, TuningState

__all__ = [
    "Bounded",
    "Discrete",
    "Hyperparameters",
    "Perturbation",
    "Positive",
    "Schedule",
    "SelfTuning",
    "SelfTuningConv",
    "SelfTuningEmbedding",
    "SelfTuningLSTMCell",
    "SelfTuningLayer",
    "SelfTuningLinear",
    "SelfTuningModel",
    "SelfTuningNorm",
    "SelfTuningState",
    "Tuner",
    "TuningState",
    "function_to_self_tuning",
    "respond",
    "squared_norm",
    "to_self_tuning",
]
