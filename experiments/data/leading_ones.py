"""LeadingOnes and randomised local search: how long a policy takes, exactly and by simulation.

A string of `n` bits is worth the number of ones before its first zero. In each step `k` bits are
flipped, all different, and the new string is kept if it is not worth less. From value `i` a step
succeeds with probability

    p_k(i) = C(n - i - 1, k - 1) / C(n, k)

(the first zero is flipped, no one before it), the bits behind are uniform all the while, and the
expected time of a policy `k(i)` is half the sum of `1 / p` over all values (Doerr and Wagner 2018;
Biedenkapp et al. 2022, arXiv:2202.03259).
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import gammaln


def success(n: int, k: np.ndarray | int, i: np.ndarray | int) -> np.ndarray:
    """`p_k(i)`; zero where more bits would have to be flipped than are left."""
    k, i = np.broadcast_arrays(np.asarray(k, float), np.asarray(i, float))
    possible = k <= n - i
    left = np.where(possible, n - i, k)
    log = gammaln(left) - gammaln(k) - gammaln(left - k + 1)
    log = log - gammaln(n + 1) + gammaln(k + 1) + gammaln(n - k + 1)
    return np.where(possible, np.exp(log), 0.0)


def expected(n: int, policy: Callable[[np.ndarray], np.ndarray]) -> float:
    """The expected time of a policy; infinite if it can be stuck."""
    values = np.arange(n)
    chances = success(n, policy(values), values)
    return float(np.sum(0.5 / chances)) if chances.all() else np.inf


def optimum(n: int, portfolio: Sequence[int] | None = None) -> tuple[float, np.ndarray]:
    """The best expected time and its policy, value by value; all `k` or those of a portfolio.

    What a policy does at one value changes nothing at the others, so that the dynamic programme is
    one maximum for each value.
    """
    ks = np.arange(1, n + 1) if portfolio is None else np.asarray(portfolio)
    chances = success(n, ks[:, None], np.arange(n)[None])
    best = chances.argmax(axis=0)
    return float(np.sum(0.5 / chances.max(axis=0))), ks[best]


def simulate(n: int, choose: Callable[[int], int], rng: np.random.Generator) -> int:
    """The steps of one run, value by value: waiting times are geometric, gains are, too."""
    value, steps = 0, 0
    value = _gain(0, n, rng)
    while value < n:
        chance = float(success(n, choose(value), value))
        if chance == 0.0:
            return 10 * n**2
        steps += int(rng.geometric(chance))
        value = _gain(value + 1, n, rng)
    return steps


def _gain(value: int, n: int, rng: np.random.Generator) -> int:
    """Uniform bits behind: each is one with probability 1/2 until the first that is not."""
    return min(n, value + int(rng.geometric(0.5)) - 1)
