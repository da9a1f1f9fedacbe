"""Preconditioned conjugate gradient and the estimate of a diagonal."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.linear import CG, PCG, Diagonal, Jacobi, symmetric_operator
from tests.hypergrad.linear.systems import matrix, solve, tree


def test_the_estimate_is_exact_for_a_diagonal_operator() -> None:
    d = jnp.geomspace(1e-6, 1e6, 40)
    built, spent = Jacobi(2).build(symmetric_operator(lambda v: d * v), d)
    np.testing.assert_allclose(built(jnp.ones(40)), 1 / d, rtol=1e-12)
    assert int(spent) == 2


def test_the_estimate_converges_to_the_diagonal() -> None:
    a = jnp.asarray(matrix("spd"))
    built, _ = Jacobi(20_000).build(symmetric_operator(lambda v: a @ v), jnp.ones(12))
    np.testing.assert_allclose(1 / built(jnp.ones(12)), jnp.diagonal(a), rtol=0.05)


def test_the_estimate_is_positive_where_the_diagonal_is_not() -> None:
    a = jnp.asarray(matrix("skew") @ matrix("skew").T - 20 * np.eye(12))
    built, _ = Jacobi(3).build(symmetric_operator(lambda v: a @ v), jnp.ones(12))
    assert np.all(np.asarray(built.diagonal) > 0)


def test_a_diagonal_far_from_constant_costs_steps_only_without_a_preconditioner() -> None:
    n = 300
    rng = np.random.default_rng(0)
    factor = jnp.asarray(1e-2 * rng.normal(size=(n, 5)))
    d = jnp.geomspace(1e-2, 1e4, n)
    operator = symmetric_operator(lambda v: d * v + factor @ (factor.T @ v))
    b = jnp.asarray(rng.normal(size=n))
    plain = eqx.filter_jit(CG(1e-8, max_steps=5000).solve)(operator, b)
    scaled = eqx.filter_jit(PCG(Jacobi(20), tol=1e-8).solve)(operator, b)
    exact = d + jnp.sum(factor**2, axis=1)
    given = eqx.filter_jit(PCG(Diagonal(exact), tol=1e-8).solve)(operator, b)
    for solution in (scaled, given):
        left = b - operator.mv(solution.value)
        assert float(jnp.linalg.norm(left)) < 1e-7 * float(jnp.linalg.norm(b))
    assert int(plain.products) > 500
    assert int(scaled.products) < 20 + 15
    assert int(given.products) < 15


def test_negative_curvature_stops_it_and_is_said() -> None:
    solution = solve(PCG(Diagonal(tree(np.ones(12))), tol=1e-10), matrix("indefinite"))
    assert solution.nonpositive_curvature
    assert not solution.breakdown
    assert float(solution.curvature_min) <= 0


def test_a_preconditioner_that_is_not_positive_definite_is_a_breakdown() -> None:
    solution = solve(PCG(Diagonal(tree(-np.ones(12)))), matrix("spd"))
    assert solution.breakdown
    assert np.all(
        np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(solution.value)]))
    )


def test_traced_options_do_not_recompile() -> None:
    traces = []
    d = jnp.linspace(1.0, 5.0, 20)

    @jax.jit
    def run(tol: jax.Array, steps: jax.Array) -> jax.Array:
        traces.append(None)
        solver = PCG(tol=tol, max_steps=steps)
        return solver.solve(symmetric_operator(lambda v: d * v), jnp.ones(20)).residual

    loose, tight = run(jnp.asarray(1e-1), 100), run(jnp.asarray(1e-12), 100)
    assert float(tight) <= 1e-12
    assert float(loose) <= 1e-1
    assert len(traces) == 1


def test_what_is_not_a_preconditioner_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a Preconditioner"):
        PCG(np.ones(3))
