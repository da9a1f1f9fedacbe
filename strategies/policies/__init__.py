"""Policies where nothing has a derivative: a space to search, and whole runs to judge by."""

from strategies.policies.base import Policy
from strategies.policies.linear import Linear
from strategies.policies.rollouts import Judged, Rollouts
from strategies.policies.table import Table
from strategies.policies.thresholds import Thresholds

__all__ = ["Judged", "Linear", "Policy", "Rollouts", "Table", "Thresholds"]
