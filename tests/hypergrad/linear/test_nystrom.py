"""Nyström: the formula against dense algebra, the solver, and the preconditioner."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import (
    PCG,
    Jacobi,
    Nystrom,
    NystromPreconditioner,
    symmetric_operator,
)
from hypergrad.linear.nystrom import low_rank
from tests.hypergrad.linear.systems import RHS, SIZE, error, flat, matrix, residual, solve


def woodbury(a: np.ndarray, columns: np.ndarray, rho: float, b: np.ndarray) -> np.ndarray:
    """The paper's formula for a sketch of columns."""
    r = a[columns]
    m = r[:, columns]
    inner = np.linalg.solve(m + r @ r.T / rho, r @ b)
    return b / rho - r.T @ inner / rho**2


@pytest.mark.parametrize("rank", [4, SIZE])
def test_columns_are_the_published_formula(rank: int) -> None:
    a = matrix("spd")
    key = jax.random.key(5)
    operator = symmetric_operator(lambda v: jnp.asarray(a) @ v)
    solver = Nystrom(rank, 0.1, sketch="columns", key=key)
    solution = eqx.filter_jit(solver.solve)(operator, jnp.asarray(RHS))
    columns = np.asarray(jax.random.choice(key, SIZE, (rank,), replace=False))
    expected = woodbury(a, columns, 0.1, RHS)
    np.testing.assert_allclose(solution.value, expected, rtol=0, atol=1e-12)
    assert int(solution.products) == rank + 1
    true = np.linalg.norm(RHS - a @ expected) / np.linalg.norm(RHS)
    assert float(solution.residual) == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("chunk", [None, 5])
def test_full_rank_is_the_damped_inverse(chunk: int | None) -> None:
    a = matrix("spd")
    solution = solve(Nystrom(50, 0.3, chunk=chunk), a)
    assert error(solution, a + 0.3 * np.eye(SIZE)) < 1e-12


def test_small_damping_in_float32() -> None:
    a, rho = matrix("spd"), 1e-3
    solution = solve(Nystrom(SIZE, rho), a, dtype=np.float32)
    # What is left of b outside the sketch is rounding, divided by the damping.
    assert error(solution, a + rho * np.eye(SIZE)) < 2 * np.finfo(np.float32).eps / rho


def test_an_approximation_made_before_saves_the_sketch() -> None:
    a = matrix("spd")
    operator = symmetric_operator(lambda v: jnp.asarray(a) @ v)
    known = low_rank(operator, jnp.asarray(RHS), SIZE)
    solution = eqx.filter_jit(Nystrom(damping=0.1, approximation=known).solve)(
        operator, jnp.asarray(RHS)
    )
    assert int(solution.products) == 1
    np.testing.assert_allclose(
        solution.value, np.linalg.solve(a + 0.1 * np.eye(SIZE), RHS), rtol=1e-10
    )


def test_negative_curvature_is_left_out_and_reported() -> None:
    a = matrix("indefinite")
    solution = solve(Nystrom(SIZE, 0.5), a)
    assert solution.nonpositive_curvature
    assert float(solution.curvature_min) == pytest.approx(-1.5)
    assert np.linalg.norm(flat(solution.value)) <= np.linalg.norm(RHS) / 0.5
    assert float(solution.residual) == pytest.approx(residual(solution, a))


def test_preconditioner_cuts_the_steps_on_a_decaying_spectrum() -> None:
    rng = np.random.default_rng(0)
    n = 200
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a = jnp.asarray((q * (1e-2 + np.geomspace(100, 1e-6, n))) @ q.T)
    operator = symmetric_operator(lambda v: a @ v)
    b = jnp.asarray(rng.normal(size=n))
    steps = {}
    for name, preconditioner in {
        "jacobi": Jacobi(2),
        "nystrom": NystromPreconditioner(100),
    }.items():
        solution = eqx.filter_jit(PCG(preconditioner, tol=1e-8).solve)(operator, b)
        assert float(jnp.linalg.norm(b - a @ solution.value)) < 1e-7 * float(jnp.linalg.norm(b))
        steps[name] = int(solution.products)
    assert steps["nystrom"] < 100 + 30
    assert steps["jacobi"] > 150


def test_scaling_first_helps_where_the_diagonal_is_far_from_constant() -> None:
    rng = np.random.default_rng(0)
    n = 200
    diagonal = np.geomspace(1e-2, 1e3, n)
    factor = rng.normal(size=(n, 10)) * np.sqrt(diagonal)[:, None]
    a = jnp.asarray(factor @ factor.T + np.diag(diagonal))
    operator = symmetric_operator(lambda v: a @ v)
    b = jnp.asarray(rng.normal(size=n))

    def run(preconditioner):
        solution = eqx.filter_jit(PCG(preconditioner, tol=1e-8, max_steps=2000).solve)(operator, b)
        return solution

    plain = run(NystromPreconditioner(20))
    scaled = run(NystromPreconditioner(20, scaling=Jacobi(20)))
    assert float(scaled.residual) <= 1e-8
    assert int(scaled.products) < int(plain.products) / 2


def test_building_again_from_a_built_one_is_free() -> None:
    a = matrix("spd")
    operator = symmetric_operator(lambda v: jnp.asarray(a) @ v)
    built, spent = NystromPreconditioner(SIZE).build(operator, jnp.asarray(RHS))
    assert int(spent) == SIZE
    solution = eqx.filter_jit(PCG(built, tol=1e-10).solve)(operator, jnp.asarray(RHS))
    assert int(solution.products) <= 2
    assert built.build(operator, jnp.asarray(RHS))[0] is built
