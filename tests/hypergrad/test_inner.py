"""Inner solvers behind one protocol."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    BilevelProblem,
    FunctionSolver,
    ImplicitDifferentiation,
    JaxoptSolver,
    Newton,
    OptaxSolver,
    as_inner_solver,
    hypergradient,
)
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse, ridge_inner

W = jnp.array([0.68609383, 0.87061288])
GOLDEN = 0.08721369186448863


def closed_form(w, lam, batch):
    x, y = batch
    return jnp.linalg.solve(x.T @ x / 3 + jnp.exp(lam) * jnp.eye(2), x.T @ y / 3)


def jaxopt_solver():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jaxopt
    return jaxopt.LBFGS(ridge_inner, maxiter=100, tol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.sgd(0.5),
        lambda: OptaxSolver(optax.lbfgs(), 50, tol=1e-12),
        lambda: closed_form,
        Newton,
        jaxopt_solver,
    ],
)
def test_every_kind_of_solver_gives_the_golden_hypergradient(make):
    estimator = ImplicitDifferentiation(make(), error_estimate=False)
    out = hypergradient(RIDGE, jnp.zeros(2), -1.0, (X, Y), (XV, YV), estimator=estimator)
    np.testing.assert_allclose(out.state.params, W, atol=1e-8)
    assert abs(out.grad - GOLDEN) < 1e-7
    assert out.info.inner_residual < 1e-9
    assert out.info.inner_iterations >= 1


def test_optax_stops_at_its_tolerance_and_reports_it():
    solver = OptaxSolver(optax.sgd(0.5), 1000, tol=1e-5)
    solution = solver.run(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    residual = jnp.linalg.norm(jax.grad(ridge_inner)(solution.params, -1.0, (X, Y)))
    assert 0 < solution.iterations < 100
    assert residual <= 1e-5
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-10)


def test_optax_momentum_continues():
    whole = OptaxSolver(optax.adam(0.1), 20).run(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    half = OptaxSolver(optax.adam(0.1), 10)
    first = half.run(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    second = half.run(RIDGE, first.params, -1.0, (X, Y), state=first.state)
    np.testing.assert_allclose(second.params, whole.params, rtol=1e-12)


def test_zero_steps_leave_the_params():
    solution = OptaxSolver(optax.sgd(0.5), 0).run(RIDGE, W, -1.0, (X, Y))
    np.testing.assert_array_equal(solution.params, W)
    assert solution.iterations == 0


def test_optax_noise_is_fresh_or_fixed(key):
    def inner(w, lam, batch, key):
        return ridge_inner(w, lam, batch) + 0.1 * jnp.vdot(jax.random.normal(key, w.shape), w)

    problem = BilevelProblem(inner, lambda w, lam, b, k: half_mse(w, lam, b), stochastic=True)
    fixed = OptaxSolver(optax.sgd(0.5), 300, fresh_noise=False)
    fresh = OptaxSolver(optax.sgd(0.5), 300)
    gradient = jax.grad(inner)
    still = fixed.run(problem, jnp.zeros(2), -1.0, (X, Y), key=key).params
    moving = fresh.run(problem, jnp.zeros(2), -1.0, (X, Y), key=key).params
    assert jnp.linalg.norm(gradient(still, -1.0, (X, Y), key)) < 1e-12
    assert jnp.linalg.norm(gradient(moving, -1.0, (X, Y), key)) > 1e-4


def test_newton_leaves_a_saddle_and_solves_to_rounding():
    problem = BilevelProblem(
        lambda w, lam, b: (w[0] ** 2 - 1) ** 2 + (w[1] - w[0]) ** 2 + lam * w[1] ** 2,
        lambda w, lam, b: jnp.sum(w),
    )
    solution = Newton().run(problem, jnp.array([1e-3, 0.0]), 0.1, None)
    hessian = jax.hessian(problem.inner)(solution.params, 0.1, None)
    assert solution.residual < 1e-14
    assert jnp.all(jnp.linalg.eigvalsh(hessian) > 0)


def test_wrong_solvers():
    with pytest.raises(ValueError, match="received the text 'adam'"):
        as_inner_solver("adam")
    with pytest.raises(ValueError, match=r"expected \(2,\), received \(3,\)"):
        FunctionSolver(lambda w, lam, b: jnp.zeros(3)).run(RIDGE, W, -1.0, (X, Y))
    assert isinstance(as_inner_solver(jaxopt_solver()), JaxoptSolver)
