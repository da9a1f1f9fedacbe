"""The value of every training example: what its weight does to a loss, and what to train on."""

from hypergrad.data.attribution import Attribution, attribute
from hypergrad.data.domains import DomainBatches, MixedDomains
from hypergrad.data.left_out import LeftOut, leave_out
from hypergrad.data.mixing import Mixture, mixture
from hypergrad.data.page import attribution_page
from hypergrad.data.selection import Selection, select
from hypergrad.data.weighing import Weighing, weigh
from hypergrad.data.weighted import WeightedExamples

__all__ = [
    "Attribution",
    "DomainBatches",
    "LeftOut",
    "MixedDomains",
    "Mixture",
    "Selection",
    "Weighing",
    "WeightedExamples",
    "attribute",
    "attribution_page",
    "leave_out",
    "mixture",
    "select",
    "weigh",
]
