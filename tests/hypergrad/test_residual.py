import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import MINRES, symmetric_operator, vector
from hypergrad.residual import residual_scale

MATRIX = jnp.array([[2.0, 0.5], [0.5, 1.0]])
TARGET = jnp.array([1.0, -3.0])


@pytest.mark.parametrize("start", [[4.0, -1.0], [0.1, 0.2], [0.0, 0.0]])
def test_it_is_the_larger_of_the_residual_and_the_curvature_along_the_point(start):
    point = jnp.array(start)
    norm, scale = residual_scale(lambda w: MATRIX @ w - TARGET, point)
    residual = np.linalg.norm(np.asarray(MATRIX @ point - TARGET))
    curvature = np.linalg.norm(np.asarray(MATRIX @ point))
    np.testing.assert_allclose(norm, residual, rtol=1e-12)
    np.testing.assert_allclose(scale, max(residual, curvature), rtol=1e-12)


def test_what_says_nothing_leaves_residuals_as_they_are():
    assert residual_scale(lambda w: 0 * w, jnp.zeros(2))[1] == 1
    norm, scale = residual_scale(lambda w: jnp.nan * w, jnp.ones(2))
    assert scale == 1
    assert jnp.isnan(norm)


def test_curvature_that_is_not_finite_is_left_out():
    norm, scale = residual_scale(lambda w: jnp.sqrt(w) - 2, jnp.zeros(1))
    assert norm == scale == 2


def test_a_weakly_typed_number_is_solved_for_in_its_own_precision():
    weak = jax.jit(lambda: 1.0 / 3)()
    assert weak.weak_type
    assert weak.dtype == jnp.float64
    assert vector.widen(weak).dtype == jnp.float64
    solution = MINRES(tol=1e-14).solve(symmetric_operator(lambda v: 3 * v), weak)
    np.testing.assert_allclose(solution.value, 1 / 9, rtol=1e-15)
