"""The embedded engine: run a search in this process, with no server and no cluster."""

from strategies.local.minimize import Objective, minimize
from strategies.local.results import Result, Trial

__all__ = ["Objective", "Result", "Trial", "minimize"]
