"""Power laws of the best hyperparameters, fitted from runs at several sizes."""

from strategies.laws.power import Estimate, PowerLaw
from strategies.laws.runs import excess, optima, rows
from strategies.laws.telescope import Stage, Telescoped, telescope

__all__ = [
    "Estimate",
    "PowerLaw",
    "Stage",
    "Telescoped",
    "excess",
    "optima",
    "rows",
    "telescope",
]
