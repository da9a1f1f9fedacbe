"""Differentiating the inner steps that were run: reverse, truncated, forward, online, distilled."""

from hypergrad.unrolled.base import UnrolledEstimator, UnrolledState
from hypergrad.unrolled.checkpointing import CheckpointSchedule
from hypergrad.unrolled.evolution import EvolutionState, PersistentEvolution
from hypergrad.unrolled.forward import ForwardUnrolled
from hypergrad.unrolled.gradient import ReverseOnlyLossWarning, grad
from hypergrad.unrolled.hyperdistill import HyperDistill, HyperDistillState
from hypergrad.unrolled.online import OnlineState, OnlineUnrolled
from hypergrad.unrolled.steps import InnerStep, OptaxStep, StepFunction, as_inner_step
from hypergrad.unrolled.truncated import TruncatedUnrolled
from hypergrad.unrolled.whole import Unrolled

__all__ = [
    "CheckpointSchedule",
    "EvolutionState",
    "ForwardUnrolled",
    "HyperDistill",
    "HyperDistillState",
    "InnerStep",
    "OnlineState",
    "OnlineUnrolled",
    "OptaxStep",
    "PersistentEvolution",
    "ReverseOnlyLossWarning",
    "StepFunction",
    "TruncatedUnrolled",
    "Unrolled",
    "UnrolledEstimator",
    "UnrolledState",
    "as_inner_step",
    "grad",
]

#: The name of version 0.1, when two classes were called so.
Schedule = CheckpointSchedule
