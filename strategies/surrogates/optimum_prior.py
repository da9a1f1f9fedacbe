"""What the space says of the optimum, as a weight of the acquisition (piBO).

Improvement is multiplied by the prior's density at a place, to the power `β / n` after `n` results
(Hvarfner, Stoll, Souza, Lindauer, Hutter & Nardi, "πBO: augmenting acquisition functions with user
beliefs for Bayesian optimization", ICLR 2022, equation 6), so that a wrong belief is outvoted.

Ten standard deviations from its centre a normal density is 1e-22, which no number of trainings that
anybody pays for would outvote. So the density is mixed with a uniform one: a rest of doubt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.space import SearchSpace

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Of the uniform density, relative to the belief's own at its likeliest place.
_DOUBT = 0.01


@dataclass(frozen=True)
class OptimumPrior:
    """The belief of a space, and how it fades.

    - `space`: whose domains say something (`SearchSpace.informed`).
    - `decay`: β: so many results outweigh it.
    """

    space: SearchSpace
    decay: float

    @property
    def likeliest(self) -> Matrix:
        """Unit coordinates of the likeliest place, `(1, dimension)`."""
        return self.space.likeliest()[None]

    def power(self, known: int) -> float:
        """To which the density is taken after so many results, at least one."""
        return self.decay / known

    def log(self, units: Matrix) -> Vector:
        """Logarithm of the density relative to the likeliest place, for each row."""
        return np.logaddexp(self.space.log_prior(units), np.log(_DOUBT)) - np.log1p(_DOUBT)

    def log_slope(self, unit: Vector) -> Vector:
        """Its derivative at one place."""
        density = np.exp(self.space.log_prior(unit[None])[0])
        return np.asarray(density / (density + _DOUBT) * self.space.log_prior_slope(unit))

    def drawn_from(self, known: int, rng: np.random.Generator) -> SearchSpace:
        """What a draw is from: the belief, or nothing but the domains, the oftener the later."""
        believed = self.decay == 0 or rng.random() < self.power(known)
        return self.space if believed else self.space.uninformed()


__all__ = ["OptimumPrior"]
