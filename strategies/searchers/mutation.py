"""The small change of one hyperparameter that local and evolutionary searchers share."""

import numpy as np

from strategies.space import Categorical, Domain


def perturbed(rng: np.random.Generator, domain: Domain, part: np.ndarray) -> np.ndarray:
    """Unit coordinates of a value near the one at `part`, and different from it if possible.

    A categorical takes any other choice; everything else moves by a normal step whose standard
    deviation is a twentieth, a seventh or half of the range, so that no scale is left out.
    """
    if isinstance(domain, Categorical):
        others = np.flatnonzero(part < 0.5)
        if not len(others):
            return part
        moved = np.zeros(domain.size)
        moved[others[int(rng.integers(len(others)))]] = 1.0
        return moved
    for _ in range(20):
        spread = rng.choice([0.05, 0.15, 0.5])
        moved = np.clip(part + spread * rng.standard_normal(part.shape), 0.0, 1.0)
        encoded = domain.encode(domain.decode(moved))
        if not np.array_equal(encoded, part):
            return encoded
    return part
