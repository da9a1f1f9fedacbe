"""Where a loss jumps in a hyperparameter, which no derivative tells."""

from hypergrad.jumps.hidden import hidden_reads

__all__ = ["hidden_reads"]
