"""The value of every training example: what its weight does to a loss."""

from hypergrad.data.attribution import Attribution, attribute
from hypergrad.data.weighted import WeightedExamples

__all__ = ["Attribution", "WeightedExamples", "attribute"]
