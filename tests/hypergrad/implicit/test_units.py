"""Parameters in unlike units: the estimate does not take them for weak directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import (
    BilevelProblem,
    ErrorEstimate,
    ImplicitDifferentiation,
    InaccurateHypergradientError,
    hypergradient,
)
from hypergrad.implicit.units import Units
from hypergrad.linear import CG, MINRES, PCG, Dense, LinearOperator, symmetric_operator

RNG = np.random.default_rng(0)
SCALES = 10.0 ** np.linspace(-2.5, 2.5, 12)
X = RNG.normal(size=(60, 12))
Y = X @ RNG.normal(size=12) + 0.3 * RNG.normal(size=60)


def squares(w, lam, batch):
    x, y, scales = batch
    return 0.5 * jnp.mean((x @ (w * scales) - y) ** 2)


def ridge(w, lam, batch):
    return squares(w, lam, batch) + 0.5 * jnp.exp(lam) * jnp.sum((w * batch[2]) ** 2)


PROBLEM = BilevelProblem(ridge, squares)
LAM = -2.0


def arguments(dtype, scales):
    """The exact inner solution in units `scales`, and the data."""
    matrix = X[:30].T @ X[:30] / 30 + np.exp(LAM) * np.eye(12)
    w = np.linalg.solve(matrix, X[:30].T @ Y[:30] / 30) / scales
    halves = [tuple(jnp.asarray(a, dtype) for a in (X[s], Y[s], scales)) for s in (ROWS, REST)]
    return jnp.asarray(w, dtype), jnp.asarray(LAM, dtype), *halves


ROWS, REST = slice(30), slice(30, 60)


@pytest.fixture(scope="module")
def truth():
    """By the matrix in float64, in units in which all parameters are alike."""
    estimator = ImplicitDifferentiation(None, Dense(), error_estimate=False)
    return float(hypergradient(PROBLEM, *arguments(float, np.ones(12)), estimator=estimator).grad)


@pytest.mark.parametrize("dense", [0, 256])
@pytest.mark.parametrize("solver", [Dense(), PCG(max_steps=300), CG(max_steps=300), MINRES()])
def test_the_estimate_does_not_depend_on_units(solver, dense, truth):
    found = hypergradient(
        PROBLEM,
        *arguments(jnp.float32, SCALES),
        estimator=ImplicitDifferentiation(None, solver, error_estimate=ErrorEstimate(dense=dense)),
    )
    true = abs(float(found.grad) - truth) / abs(float(found.grad))
    assert true <= found.info.error
    if true > 1e-4:
        assert found.info.error < 10 * true
    else:
        # Rounding in float32, with one condition number of features that are alike.
        assert found.info.error < 1e-3


def test_strict_refuses_what_the_units_have_spoilt():
    with pytest.raises(InaccurateHypergradientError):
        hypergradient(
            PROBLEM,
            *arguments(jnp.float32, SCALES),
            estimator=ImplicitDifferentiation(None, MINRES()),
            strict=True,
        )


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_are_evened_by_powers_of_two(symmetric):
    matrix = RNG.normal(size=(40, 40))
    matrix = matrix @ matrix.T if symmetric else matrix + 5 * np.eye(40)
    scales = 10.0 ** RNG.uniform(-6, 6, 40)
    matrix = scales[:, None] * matrix * scales
    units = Units.by_matrix(jnp.asarray(matrix))
    assert np.all(np.log2(units.diagonal) % 1 == 0)
    rows = np.abs(units.diagonal[:, None] * matrix * units.diagonal).max(axis=1)
    assert rows.min() > 1 / 8
    assert rows.max() < 8

    def mv(v):
        return {"w": jnp.asarray(matrix) @ v["w"]}

    def transpose(v):
        return {"w": jnp.asarray(matrix.T) @ v["w"]}

    operator = symmetric_operator(mv) if symmetric else LinearOperator(mv, transpose, symmetric)
    found = Units.by_products(operator, {"w": jnp.zeros(40)})
    diagonal = np.asarray(found.diagonal["w"])
    assert np.all(np.log2(diagonal) % 1 == 0)
    # Of the twelve decades of the scales each of four products leaves half.
    evened = np.log10(diagonal * scales)
    assert np.ptp(evened) < np.ptp(np.log10(scales)) / 4


def test_units_of_nothing_and_of_rows_of_zeros():
    np.testing.assert_array_equal(Units.by_matrix(jnp.zeros((3, 3))).diagonal, np.ones(3))
    zeros = symmetric_operator(lambda v: jax.tree.map(jnp.zeros_like, v))
    np.testing.assert_array_equal(Units.by_products(zeros, jnp.zeros(3)).diagonal, np.ones(3))
    assert Units.by_matrix(jnp.zeros((0, 0))).spread == 1


def test_there_and_back_is_exact():
    units = Units(jnp.asarray([0.25, 1.0, 1024.0]))
    w = jnp.asarray(RNG.normal(size=3), jnp.float32)
    np.testing.assert_array_equal(units.back(units.into(w)), w)
    image = units.scaled(symmetric_operator(lambda v: v)).mv(w)
    np.testing.assert_array_equal(image, w * units.diagonal**2)
