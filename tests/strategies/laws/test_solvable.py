"""A model whose compute-optimal size is a known power of compute, as a test of fitted laws.

Paquette et al., "4+3 Phases of Compute-Optimal Neural Scaling Laws" (2024): least squares on
random features of data whose variances and targets are power laws, by one-pass gradient steps. Its
expected loss obeys a deterministic recursion, so that nothing here is noise.
"""

import numpy as np
import pytest

from strategies.laws import PowerLaw

V = 2000


def curve(alpha, beta, d, times, rng):
    """Expected loss after each of `times` steps with `d` features."""
    j = np.arange(1, V + 1.0)
    w = rng.standard_normal((V, d)) / np.sqrt(d)
    features = j[:, None] ** -alpha * w
    target = j ** -(alpha + beta)
    values, vectors = np.linalg.eigh(features.T @ features)
    values = np.maximum(values, 1e-300)
    part = (vectors.T @ (features.T @ target)) ** 2 / values
    floor = target @ target - part.sum()
    step = 0.5 / values.sum()
    # Each mode decays, and is fed by the noise of the whole loss: implicit steps between times.
    energy, found, before = part, [], 0.0
    for time in times:
        h = time - before
        shrink = 1.0 / (1.0 + 2.0 * h * step * values)
        feed = h * step**2 * values**2 * shrink
        loss = (floor + (energy * shrink).sum()) / (1.0 - feed.sum())
        energy = energy * shrink + feed * loss
        found.append(loss)
        before = time
    return np.array(found)


def test_the_compute_optimal_size():
    # Phase Ia: the size is compute to the power 1 / (2 alpha + 1).
    alpha, beta, power = 1.0, 0.3, 1 / 3
    sizes = np.unique(np.geomspace(12, 400, 16).astype(int))
    times = np.geomspace(1.0, 1e8, 400)
    rng = np.random.default_rng(0)
    compute = np.geomspace(3e2, 1e9, 40)
    # Draws of the features differ, their geometric mean less so.
    curves = [
        np.mean([np.log(curve(alpha, beta, d, times, rng)) for _ in range(3)], 0) for d in sizes
    ]
    losses = np.array(
        [
            np.interp(np.log(compute / d), np.log(times), each, left=np.inf, right=np.inf)
            for d, each in zip(sizes, curves, strict=True)
        ]
    )
    points = []
    for at, f in enumerate(compute):
        best = int(losses[:, at].argmin())
        near = slice(best - 3, best + 4)
        if 3 <= best < len(sizes) - 3 and np.isfinite(losses[near, at]).all():
            a, b, _ = np.polyfit(np.log(sizes[near]), losses[near, at], 2)
            points.append({"compute": f, "d": float(np.exp(-b / (2 * a)))})
    law = PowerLaw.fit(points, ("compute",), "d")
    assert law.exponents[0] == pytest.approx(power, abs=0.05)
