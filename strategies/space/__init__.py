"""The shared search space: domains, conditions, transforms."""

from strategies.space.around import around
from strategies.space.choices import Categorical, Constant, Ordinal
from strategies.space.domains import Domain
from strategies.space.logit import Logit
from strategies.space.numeric import Float, Int
from strategies.space.point import Point
from strategies.space.search_space import Config, SearchSpace
from strategies.space.structured import Ordered, Simplex
from strategies.space.tree import Choice

__all__ = [
    "Categorical",
    "Choice",
    "Config",
    "Constant",
    "Domain",
    "Float",
    "Int",
    "Logit",
    "Ordered",
    "Ordinal",
    "Point",
    "SearchSpace",
    "Simplex",
    "around",
]
