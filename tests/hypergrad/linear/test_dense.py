"""Direct solves: the matrix itself, singular and indefinite systems, and the size limit."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import PCG, Dense, DensePreconditioner, LinearOperator, symmetric_operator
from hypergrad.linear.dense import materialise
from tests.hypergrad.linear.systems import RHS, SIZE, error, matrix, residual, solve


@pytest.mark.parametrize("chunk", [1, 5, 12, 128])
def test_materialise_is_the_matrix(chunk: int) -> None:
    a = jnp.asarray(matrix("nonsymmetric"))
    operator = LinearOperator(lambda v: a @ v, lambda v: a.T @ v, symmetric=False)
    np.testing.assert_allclose(materialise(operator, jnp.asarray(RHS), chunk=chunk), a, rtol=1e-14)


@pytest.mark.parametrize("kind", ["spd", "ill", "indefinite", "nonsymmetric", "skew"])
def test_regular_systems(kind: str) -> None:
    a = matrix(kind)
    solution = solve(Dense(), a)
    assert error(solution, a) < 1e-9
    assert residual(solution, a) < 1e-9
    assert int(solution.products) == SIZE
    assert not solution.breakdown


def test_a_singular_system_gets_the_shortest_least_squares_solution() -> None:
    a = matrix("singular")
    solution = solve(Dense(), a)
    assert error(solution, a) < 1e-9
    assert solution.nonpositive_curvature
    assert float(solution.residual) == pytest.approx(residual(solution, a))
    assert float(solution.residual) > 0.05


def test_a_singular_system_that_is_not_symmetric() -> None:
    a = matrix("nonsymmetric").copy()
    a[3] = a[4]
    solution = solve(Dense(), a)
    assert error(solution, a) < 1e-9
    assert not solution.breakdown


def test_too_many_unknowns_are_refused() -> None:
    operator = symmetric_operator(lambda v: v)
    with pytest.raises(ValueError, match="101 unknowns, but max_size is 100"):
        Dense(max_size=100).solve(operator, jnp.ones(101))


def test_negative_curvature_is_measured() -> None:
    solution = solve(Dense(), matrix("indefinite"))
    assert float(solution.curvature_min) == pytest.approx(-1.5)
    assert float(solution.curvature_max) == pytest.approx(6.0)


@pytest.mark.parametrize(("kind", "most"), [("spd", 4), ("ill", 6)])
def test_an_inverse_of_a_neighbouring_operator_makes_a_few_products_enough(
    kind: str, most: int
) -> None:
    a = matrix(kind)
    old = symmetric_operator(lambda v: jnp.asarray(a) @ v)
    built, spent = DensePreconditioner().build(old, jnp.asarray(RHS))
    assert int(spent) == SIZE
    # All eigenvalues a little larger, all of them differently.
    moved = a + 1e-3 * a @ a
    new = symmetric_operator(lambda v: jnp.asarray(moved) @ v)
    solution = eqx.filter_jit(PCG(built, tol=1e-8).solve)(new, jnp.asarray(RHS))
    assert float(solution.residual) <= 1e-8
    assert int(solution.products) <= most


def test_the_inverse_of_an_indefinite_operator_is_made_definite() -> None:
    a = jnp.asarray(matrix("indefinite"))
    built, _ = DensePreconditioner().build(symmetric_operator(lambda v: a @ v), jnp.asarray(RHS))
    values, vectors = np.linalg.eigh(a)
    np.testing.assert_allclose(built.matrix, vectors / np.abs(values) @ vectors.T, atol=1e-10)
