"""The systems of the experiment `relax` against plain linear algebra."""

import numpy as np
import pytest
from scipy.linalg import solve_triangular

from experiments.data.relaxation import Systems, best_relaxation, heat, iterations, poisson

SIDE = 5


def matrix(diagonal, coupling, side):
    near = np.diag(np.ones(side - 1), 1) + np.diag(np.ones(side - 1), -1)
    one = np.eye(side)
    return diagonal * np.eye(side**2) - coupling * (np.kron(near, one) + np.kron(one, near))


def sor(a, b, omega):
    factor, x = np.diag(np.diag(a)) / omega + np.tril(a, -1), np.zeros(len(b))
    first, count = np.linalg.norm(b), 0
    while np.linalg.norm(b - a @ x) > 1e-8 * first:
        x, count = x + solve_triangular(factor, b - a @ x, lower=True), count + 1
    return count


def ssor_cg(a, b, x, omega):
    d = np.diag(np.diag(a))
    lower = d + omega * np.tril(a, -1)
    inverse = np.linalg.inv(lower @ np.linalg.inv(d) @ lower.T / (omega * (2 - omega)))
    r, count = b - a @ x, 0
    p = z = inverse @ r
    while np.linalg.norm(r) > 1e-8 * np.linalg.norm(b):
        alpha = (r @ z) / (p @ a @ p)
        new = r - alpha * (a @ p)
        z_new = inverse @ new
        p, r, z, count = z_new + (new @ z_new) / (r @ z) * p, new, z_new, count + 1
    return count


@pytest.fixture(scope="module")
def systems():
    return poisson(4, SIDE, "high", np.random.default_rng(0))[0]


def test_counts_are_those_of_plain_loops(systems):
    omegas = np.array([1.0, 1.4, 1.7])
    found = iterations(systems, omegas, "sor")
    for i in range(4):
        a = matrix(systems.diagonal[i], 1.0, SIDE)
        assert [sor(a, systems.rhs[i].ravel(), omega) for omega in omegas] == list(found[i])


def test_the_best_relaxation_has_the_smallest_spectral_radius(systems):
    """Young: at the best ω all eigenvalues have modulus ω - 1, and no other ω is better."""
    a = matrix(systems.diagonal[0], 1.0, SIDE)
    best = best_relaxation(systems.diagonal, systems.coupling, SIDE)[0]
    d, low = np.diag(np.diag(a)), np.tril(a, -1)

    def radius(omega):
        step = np.eye(len(a)) - np.linalg.solve(d / omega + low, a)
        return np.abs(np.linalg.eigvals(step)).max()

    np.testing.assert_allclose(radius(best), best - 1, rtol=1e-3)
    assert radius(best) < min(radius(best - 0.02), radius(best + 0.02))


def test_the_heat_equation_and_its_preconditioned_solves():
    systems, coefficients = heat(6, 6, 0.75 * 6 / 5000 * 200)
    assert coefficients.min() >= 0
    for i in (1, 4):
        a = matrix(systems.diagonal[i], systems.coupling[i], 5)
        b = systems.rhs[i].ravel()
        if i + 1 < 6:
            np.testing.assert_allclose(
                np.linalg.solve(a, b), systems.start[i + 1].ravel(), atol=1e-12
            )
        one = Systems(*(part[i : i + 1] for part in systems))
        found = iterations(one, np.array([1.0, 1.5]), "ssor")[0]
        start = systems.start[i].ravel()
        assert list(found) == [ssor_cg(a, b, start, omega) for omega in (1.0, 1.5)]
