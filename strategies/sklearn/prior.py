"""What is known of many penalties before the folds are seen: they are of one magnitude.

A few hundred samples do not determine one penalty per feature: without a prior the search fits the
folds. The logarithms of penalties are taken to be normal around their mean, with a standard
deviation `spread`; a loss that is a mean over n samples then has

    loss (1 + Σ_j (log λ_j - mean log λ)² / (n spread²))

in its place. For squared errors this is the joint posterior's negative logarithm, over n, up to the
noise's scale: the smallest loss estimates that. A loss that is itself a negative log density, which
may be negative, needs no such scale: there half of the sum over n spread² is added. So it is where
any other loss is negative: the factor would reward what is unlikely.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RatioPrior:
    """A normal prior on the logarithms of penalties around their mean.

    - `spread`: its standard deviation.
    - `samples`: that the loss is a mean over.
    - `density`: the loss is a negative log density.
    """

    spread: float
    samples: int
    density: bool = False

    def __call__(
        self, value: float, gradient: np.ndarray, penalties: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """The loss with its prior, and the derivative in the penalties."""
        logs = np.log(penalties)
        away = logs - logs.mean()
        scale = self.samples * self.spread**2
        if self.density or value < 0:
            return value + 0.5 * float(away @ away) / scale, gradient + away / scale / penalties
        share = 1.0 + float(away @ away) / scale
        # The mean's own part vanishes, as deviations sum to zero.
        return value * share, gradient * share + value * 2.0 * away / scale / penalties
