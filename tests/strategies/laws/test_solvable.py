"""A model whose compute-optimal size is a known power of compute, as a test of fitted laws.

Paquette et al., "4+3 Phases of Compute-Optimal Neural Scaling Laws" (2024): least squares on `d`
random features of data whose variances `j^(-2 alpha)` and targets `j^-beta` are power laws, by
one-pass gradient steps. Its expected loss obeys a recursion. What enters it of the features is
taken to first order in 1/d: the energy that each direction loses to those below it, and, exactly,
what no feature reaches. So nothing is random, and sizes of millions are as cheap as small ones.

They are needed: at the sizes that can be drawn the terms that a power law neglects are tens of per
cent. In phase II they fall as `d^-(2 alpha - 1)(1 - 1/(2 beta))`, in phase III as the root of d.
"""

import numpy as np
import pytest

from strategies.laws import PowerLaw

#: Dimensions of the data: each of the first, then bins up to a billion.
DIMENSIONS = np.unique(np.round(np.concatenate([np.arange(1, 60), np.geomspace(60, 1e9, 140)])))
_EDGES = np.sqrt(DIMENSIONS[1:] * DIMENSIONS[:-1])
COUNTS = np.diff(np.concatenate([[0.5], _EDGES, [DIMENSIONS[-1]]]))
COUNTS[:58] = 1.0
#: The step, relative to the largest that is stable.
STEP = 0.5


def spectrum(alpha, beta, d):
    """Eigenvalues, how many, the target's energy in them, and what no feature reaches."""
    variance, size = DIMENSIONS ** (-2 * alpha), DIMENSIONS ** (-2 * beta)
    low, high = 0.0, 2 * alpha * np.log(1e12)
    for _ in range(100):
        ridge = np.exp(0.5 * (low + high))
        reached = (COUNTS * variance * ridge / (1 + variance * ridge)).sum()
        low, high = (0.5 * (low + high), high) if reached < d else (low, 0.5 * (low + high))
    floor = (COUNTS * variance * size / (1 + variance * ridge)).sum()
    above = np.cumsum(COUNTS * size)
    energy = COUNTS * variance * (size + above / d)
    inside = d >= DIMENSIONS
    return variance[inside], COUNTS[inside], energy[inside], floor


def curve(alpha, beta, d, times):
    """Logarithm of the expected loss after each of `times` steps with `d` features."""
    x, count, energy, floor = spectrum(alpha, beta, d)
    step = STEP / (COUNTS * DIMENSIONS ** (-2 * alpha)).sum()
    # Each mode decays, and is fed by the noise of the whole loss: implicit steps between times.
    found, before = [], 0.0
    for time in times:
        h = time - before
        shrink = 1.0 / (1.0 + 2.0 * h * step * x)
        feed = count * h * (step * x) ** 2 * shrink
        loss = (floor + (energy * shrink).sum()) / (1.0 - feed.sum())
        energy = energy * shrink + feed * loss
        found.append(loss)
        before = time
    return np.log(found)


def optimal_sizes(alpha, beta, sizes, compute):
    """The best size at each compute, where it lies well inside of the sizes."""
    times = np.geomspace(1.0, 1e16, 500)
    losses = np.array(
        [
            np.interp(
                np.log(compute / d),
                np.log(times),
                curve(alpha, beta, d, times),
                left=np.inf,
                right=np.inf,
            )
            for d in sizes
        ]
    )
    points = []
    for at, f in enumerate(compute):
        best = int(losses[:, at].argmin())
        near = slice(best - 3, best + 4)
        if 3 <= best < len(sizes) - 3 and np.isfinite(losses[near, at]).all():
            a, b, _ = np.polyfit(np.log(sizes[near]), losses[near, at], 2)
            points.append({"compute": f, "d": float(np.exp(-b / (2 * a)))})
    return points


@pytest.mark.parametrize(
    ("phase", "alpha", "beta", "power"),
    [
        ("Ia", 1.0, 0.3, 1 / (2 * 1.0 + 1)),
        ("II", 1.0, 0.8, 0.8 / (1.0 + 0.8)),
        ("III", 1.0, 1.5, 1 / 2),
    ],
)
def test_the_compute_optimal_size(phase, alpha, beta, power):
    points = optimal_sizes(alpha, beta, np.geomspace(1e3, 1e7, 30), np.geomspace(1e5, 1e20, 150))
    law = PowerLaw.fit(points, ("compute",), "d", bootstrap=100)
    assert law.exponents[0] == pytest.approx(power, abs=0.05)
