"""The rule by which a bandit draws: Tsallis-INF, on arrays of NumPy and of JAX alike.

Zimmert & Seldin, "Tsallis-INF: an optimal algorithm for stochastic and adversarial bandits" (JMLR
2021): follow the regularised leader with the Tsallis entropy of order 1/2. Of losses that were
estimated as `loss / probability` of the arms drawn it needs no bound on how they come about.
"""

from typing import Any

#: Newton steps: from the start below they grow the distance by half until they converge
#: quadratically, which 20 do for a million arms.
_STEPS = 20


def tsallis_inf(losses: Any, rate: Any) -> Any:
    """Probabilities `p_i = 4 / (rate (losses_i - x))²` of the arms, with `x` such that they add up.

    They minimise `Σ p_i losses_i - (4 / rate) Σ sqrt(p_i)` over the simplex. Adding a constant to
    all losses changes nothing.

    **Arguments:**

    - `losses`: sums of the estimated losses of each arm so far, shape `(arms,)`, of the order of
      one for a round.
    - `rate`: the learning rate, `2 / sqrt(t)` in round `t`.

    **Returns:** an array of the library, shape and dtype of `losses`.
    """
    above = losses - losses.min()
    # From the left of the root, where the sum is at least one, Newton comes without overshooting.
    x = -2 / rate + 0 * above.min()
    for _ in range(_STEPS):
        weights = 4 / (rate * (above - x)) ** 2
        x = x - (weights.sum() - 1) / (rate * (weights**1.5).sum())
    weights = 4 / (rate * (above - x)) ** 2
    return weights / weights.sum()
