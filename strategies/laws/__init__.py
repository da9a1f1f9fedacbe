"""Power laws of the best hyperparameters, fitted from runs at several sizes."""

from strategies.laws.power import Estimate, PowerLaw
from strategies.laws.runs import excess, optima, rows

__all__ = ["Estimate", "PowerLaw", "excess", "optima", "rows"]
