"""The Neumann series against golden numbers, its own recurrence, and its failures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import Neumann, symmetric_operator
from hypergrad.linear.neumann import power_iteration
from tests.hypergrad.linear.systems import RHS, SIZE, flat, matrix, residual, solve

# Ridge regression with one penalty, at its solution: Hessian, outer gradient, and C = e^lam w*.
X = np.array([[1.0, 0], [0, 2], [1, 1]])
Y = np.array([1.0, 2, 2])
XV = np.array([[1.0, 2], [2, -1]])
YV = np.array([2.5, 1])
HESSIAN = X.T @ X / 3 + np.exp(-1) * np.eye(2)
W = np.linalg.solve(HESSIAN, X.T @ Y / 3)
G = XV.T @ (XV @ W - YV) / 2


@pytest.mark.parametrize(
    ("products", "golden"),
    [
        (0, 0.03137394137585697),
        (1, 0.05205283314406326),
        (2, 0.06515817275682391),
        (5, 0.08178696689793584),
        (20, 0.08720880654680016),
    ],
)
def test_golden_hypergradients(products: int, golden: float) -> None:
    operator = symmetric_operator(lambda v: jnp.asarray(HESSIAN) @ v)
    solution = eqx.filter_jit(Neumann(products, step=0.4).solve)(operator, jnp.asarray(G))
    hypergradient = -np.exp(-1) * float(W @ solution.value)
    assert hypergradient == pytest.approx(golden, rel=1e-12)
    assert int(solution.products) == products


def test_counts_the_power_iteration_and_bounds_the_residual() -> None:
    a = matrix("spd")
    solution = solve(Neumann(20), a)
    assert int(solution.products) == 20 + 10
    assert residual(solution, a) <= float(solution.residual) < 1.5 * residual(solution, a)
    assert not solution.breakdown


def test_automatic_step_converges() -> None:
    a = matrix("spd")
    assert residual(solve(Neumann(2000), a), a) < 1e-12


def test_power_iteration_finds_the_largest_eigenvalue() -> None:
    a = jnp.asarray(matrix("spd"))
    like = jnp.asarray(RHS)
    estimate, products = power_iteration(
        symmetric_operator(lambda v: a @ v), like, 200, jax.random.key(3)
    )
    assert float(estimate) == pytest.approx(8.0, rel=1e-10)
    assert int(products) == 200


@pytest.mark.parametrize(("kind", "step"), [("spd", 2.2 / 8.0), ("indefinite", 0.1)])
def test_divergence_is_reported_and_the_best_sum_kept(kind: str, step: float) -> None:
    a = matrix(kind)
    # All of the right-hand side where the series shrinks, but for a speck.
    values, vectors = np.linalg.eigh(a)
    top = int(np.argmax(np.abs(1 - step * values)))
    b = vectors @ np.where(np.arange(SIZE) == top, 1e-2, 1.0)
    solution = solve(Neumann(400, step=step), a, b)
    assert solution.breakdown
    assert int(solution.products) < 400
    assert bool(solution.nonpositive_curvature) == (kind == "indefinite")
    assert residual(solution, a, b) < 0.7
    assert float(solution.residual) < 0.7


def test_a_growing_term_at_the_end_is_divergence_too() -> None:
    solution = solve(Neumann(2, step=10.0), matrix("spd"))
    assert solution.breakdown
    np.testing.assert_allclose(flat(solution.value), 10.0 * RHS)


def test_no_products_measure_nothing() -> None:
    solution = solve(Neumann(0, step=0.5), matrix("spd"))
    np.testing.assert_allclose(flat(solution.value), 0.5 * RHS)
    assert np.isnan(float(solution.residual))
    assert not solution.breakdown
