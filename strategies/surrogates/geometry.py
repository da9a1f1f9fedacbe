"""How a search space looks to a kernel."""

import numpy as np
from numpy.typing import NDArray

from strategies.space import Categorical, SearchSpace


def geometry(space: SearchSpace) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The length-scale group of each unit coordinate, and the stretch of each.

    The coordinates of one categorical share a length scale and are stretched so that any two
    choices are at distance one.
    """
    groups = np.empty(space.dimension, np.intp)
    stretch = np.ones(space.dimension)
    count = 0
    for path, where in space.slices.items():
        domain = space.domains[path]
        if isinstance(domain, Categorical):
            groups[where] = count
            stretch[where] = np.sqrt(0.5)
            count += domain.size > 0
        else:
            groups[where] = np.arange(count, count + domain.size)
            count += domain.size
    return groups, stretch
