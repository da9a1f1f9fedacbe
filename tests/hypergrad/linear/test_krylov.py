"""MINRES, GMRES, BiCGStab, NormalCG and Fallback where the system is hard."""

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import CG, GMRES, MINRES, BiCGStab, Dense, Fallback, NormalCG
from tests.hypergrad.linear.systems import RHS, error, flat, matrix, residual, solve


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_minres_stops_at_the_least_squares_solution_of_a_singular_system(dtype: type) -> None:
    a = matrix("singular")
    solution = solve(MINRES(1e-12 if dtype == np.float64 else 1e-6), a, dtype=dtype)
    best = np.linalg.norm(RHS - a @ np.linalg.pinv(a, rcond=1e-10) @ RHS) / np.linalg.norm(RHS)
    tolerance = 1e-8 if dtype == np.float64 else 1e-3
    assert residual(solution, a) == pytest.approx(best, rel=tolerance)
    assert float(solution.residual) == pytest.approx(best, rel=tolerance)
    assert int(solution.products) < 100
    assert np.linalg.norm(flat(solution.value)) < 1e3


@pytest.mark.parametrize("solver", [MINRES(1e-10), GMRES(1e-10), BiCGStab(1e-10), NormalCG(1e-10)])
def test_a_singular_system_with_a_solution(solver) -> None:
    a = matrix("singular")
    b = a @ RHS
    solution = solve(solver, a, b)
    assert residual(solution, a, b) < 2e-10
    assert error(solution, a, b) < 1e-6


@pytest.mark.parametrize("solver", [MINRES(1e-7), GMRES(1e-9), BiCGStab(1e-7)])
def test_a_condition_number_of_a_million(solver) -> None:
    a = matrix("ill")
    solution = solve(solver, a)
    # MINRES loses the square of the condition number, and has to say how far it came.
    assert residual(solution, a) < (1e-6 if isinstance(solver, MINRES) else 2e-7)
    assert abs(float(solution.residual) - residual(solution, a)) < 1e-9


def test_the_residual_that_gmres_states_is_true_over_many_restarts() -> None:
    a = matrix("nonsymmetric")
    solution = solve(GMRES(1e-9, restart=4), a)
    assert residual(solution, a) < 2e-9
    assert int(solution.products) > 12


def test_gmres_gives_up_where_it_stagnates() -> None:
    # A cyclic shift: no progress before the last of n steps.
    a = np.roll(np.eye(12), 1, axis=0)
    b = np.eye(12)[0]
    stuck = solve(GMRES(1e-10, restart=5), a, b)
    assert float(stuck.residual) == pytest.approx(1.0)
    assert int(stuck.products) <= 10
    solved = solve(GMRES(1e-10, restart=12), a, b)
    assert error(solved, a, b) < 1e-10


def test_a_skew_operator() -> None:
    a = matrix("skew")
    stopped = solve(BiCGStab(1e-10), a)
    assert stopped.breakdown
    assert np.all(np.isfinite(flat(stopped.value)))
    for solver in (GMRES(1e-10), NormalCG(1e-10)):
        assert error(solve(solver, a), a) < 1e-8


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_minres_never_has_a_longer_residual_than_conjugate_gradient(steps: int) -> None:
    a = matrix("spd")
    minimal = solve(MINRES(0.0, max_steps=steps), a)
    other = solve(CG(0.0, max_steps=steps), a)
    assert residual(minimal, a) <= residual(other, a) + 1e-12
    assert float(minimal.residual) == pytest.approx(residual(minimal, a), rel=1e-8)


def test_normal_cg_takes_a_least_squares_solution() -> None:
    a = matrix("singular")
    solution = solve(NormalCG(1e-10), a)
    assert error(solution, a) < 1e-6
    assert float(solution.residual) == pytest.approx(residual(solution, a), rel=1e-6)


def test_fallback_takes_the_second_only_where_it_is_needed() -> None:
    chain = Fallback(CG(1e-10), Fallback(MINRES(1e-10), Dense()))
    easy, alone = solve(chain, matrix("spd")), solve(CG(1e-10), matrix("spd"))
    assert int(easy.products) == int(alone.products)
    # Two programs: rounding may differ in the last digit.
    np.testing.assert_allclose(flat(easy.value), flat(alone.value), rtol=1e-14)
    hard = solve(chain, matrix("indefinite"))
    assert error(hard, matrix("indefinite")) < 1e-8
    assert hard.nonpositive_curvature
    assert int(hard.products) > int(solve(CG(1e-10), matrix("indefinite")).products)
    assert float(hard.curvature_min) < 0


def test_curvatures_are_rayleigh_quotients() -> None:
    a = jnp.asarray(matrix("indefinite"))
    values = np.linalg.eigvalsh(a)
    for solver in (MINRES(1e-8), GMRES(1e-8), BiCGStab(1e-8), NormalCG(1e-8)):
        solution = solve(solver, np.asarray(a))
        assert values[0] - 1e-9 <= float(solution.curvature_min)
        assert float(solution.curvature_min) <= float(solution.curvature_max) <= values[-1] + 1e-9
        assert isinstance(solver, GMRES | NormalCG | BiCGStab) or solution.nonpositive_curvature
