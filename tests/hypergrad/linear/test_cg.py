"""Conjugate gradient: right answers, and what it does when there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import LinearOperator, symmetric_operator
from hypergrad.linear.cg import CG


def matrix(size=12, low=0.1, high=10.0):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return jnp.asarray(q @ np.diag(np.geomspace(low, high, size)) @ q.T), jnp.asarray(
        rng.normal(size=size)
    )


def operator(a):
    return symmetric_operator(lambda v: a @ v)


def test_dense_solution_and_its_own_account():
    a, b = matrix()
    solution = jax.jit(lambda b: CG(tol=1e-12).solve(operator(a), b))(b)
    np.testing.assert_allclose(solution.value, jnp.linalg.solve(a, b), rtol=1e-9)
    residual = jnp.linalg.norm(b - a @ solution.value) / jnp.linalg.norm(b)
    assert solution.residual <= 1e-12
    assert residual < 1e-11
    assert solution.products <= 30
    assert 0.1 - 1e-9 <= solution.curvature_min < solution.curvature_max <= 10 + 1e-9
    assert not solution.breakdown
    assert not solution.nonpositive_curvature


def test_each_step_is_one_product():
    a, b = matrix()
    solution = CG(tol=0.0, max_steps=5).solve(operator(a), b)
    assert solution.products == 5
    none = CG(max_steps=0).solve(operator(a), b)
    assert none.products == 0
    assert none.residual == 1
    np.testing.assert_array_equal(none.value, jnp.zeros_like(b))


def test_zero_right_side_is_free():
    a, b = matrix()
    solution = CG().solve(operator(a), 0 * b)
    assert solution.products == 0
    assert solution.residual == 0
    np.testing.assert_array_equal(solution.value, 0 * b)


def test_a_warm_start_is_scaled_before_use():
    a, b = matrix()
    exact = jnp.linalg.solve(a, b)
    solution = CG(tol=1e-10).solve(operator(a), b, initial=1e3 * exact)
    assert solution.products == 1
    np.testing.assert_allclose(solution.value, exact, rtol=1e-8)
    cold = CG(tol=1e-10).solve(operator(a), b)
    zero = CG(tol=1e-10).solve(operator(a), b, initial=0 * b)
    assert zero.products == cold.products


def test_a_warm_start_of_negative_curvature_is_dropped_but_told():
    a = jnp.diag(jnp.array([1.0, 2.0, -1.0]))
    solution = CG(tol=1e-12).solve(
        operator(a), jnp.array([1.0, 1.0, 0.0]), initial=jnp.array([0.0, 0.0, 1.0])
    )
    np.testing.assert_allclose(solution.value, [1.0, 0.5, 0.0], atol=1e-12)
    assert solution.nonpositive_curvature


def test_negative_curvature_keeps_what_was_found_before():
    a = jnp.diag(jnp.array([5.0, 4.0, -0.1]))
    b = jnp.array([1.0, 1.0, 0.01])
    solution = CG(tol=1e-12).solve(operator(a), b)
    assert solution.nonpositive_curvature
    assert not solution.breakdown
    assert solution.residual < 0.5
    residual = jnp.linalg.norm(b - a @ solution.value) / jnp.linalg.norm(b)
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-8)


def test_singular_but_consistent():
    a = jnp.diag(jnp.array([2.0, 1.0, 0.0]))
    solution = CG(tol=1e-12).solve(operator(a), jnp.array([2.0, 3.0, 0.0]))
    np.testing.assert_allclose(solution.value, [1.0, 3.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_product_that_is_not_finite_is_contained(bad):
    a, b = matrix()
    b = b / jnp.max(jnp.abs(b))  # the solver sees it as it is

    def mv(v):
        return jnp.where(jnp.abs(v @ b) < 0.9 * b @ b, bad, a @ v)

    solution = CG(tol=1e-12).solve(symmetric_operator(mv), b)
    assert solution.breakdown
    assert jnp.all(jnp.isfinite(solution.value))
    assert solution.residual < 1


def test_float32_ill_conditioned_keeps_the_best():
    a, b = matrix(size=40, low=1e-4, high=1e2)
    a32, b32 = a.astype(jnp.float32), b.astype(jnp.float32)
    solution = CG(tol=1e-7, max_steps=2000).solve(operator(a32), b32)
    assert solution.value.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(solution.value))
    exact = jnp.linalg.solve(a, b)
    energy = lambda e: e @ a @ e  # noqa: E731
    assert energy(solution.value.astype(float) - exact) < 1e-3 * energy(exact)


def test_vmap_over_right_sides():
    a, b = matrix()
    many = jnp.stack([b, 2 * b, 0 * b, jnp.ones_like(b)])
    solution = jax.vmap(lambda b: CG(tol=1e-12).solve(operator(a), b))(many)
    np.testing.assert_allclose(solution.value, jnp.linalg.solve(a, many.T).T, atol=1e-9)
    assert solution.products[2] == 0


def test_refuses_what_is_not_symmetric():
    a = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    skew = LinearOperator(lambda v: a @ v, lambda v: a.T @ v, symmetric=False)
    with pytest.raises(ValueError, match="symmetric"):
        CG().solve(skew, jnp.ones(2))
