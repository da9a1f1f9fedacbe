"""The pure form: every order and both modes of differentiation through a solver."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    OptaxSolver,
    hypergradient,
    implicit_solver,
)
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse, relative_error

EXACT = implicit_solver(RIDGE, Newton(), CG(tol=1e-13))


def validation(lam):
    return half_mse(EXACT(jnp.zeros(2), lam, (X, Y)), lam, (XV, YV))


def closed_form(lam):
    w = jnp.linalg.solve(X.T @ X / 3 + jnp.diag(jnp.exp(lam)), X.T @ Y / 3)
    return half_mse(w, lam, (XV, YV))


LAM = jnp.array([-1.0, 0.5])


def test_gradient_equals_the_estimators():
    estimator = ImplicitDifferentiation(Newton(), CG(tol=1e-13), error_estimate=False)
    out = hypergradient(RIDGE, jnp.zeros(2), LAM, (X, Y), (XV, YV), estimator=estimator)
    assert relative_error(jax.jit(jax.grad(validation))(LAM), out.grad) < 1e-12


def test_forward_and_reverse_mode_and_second_derivatives():
    reverse, forward, second = jax.jit(
        lambda lam: (
            jax.jacrev(validation)(lam),
            jax.jacfwd(validation)(lam),
            jax.hessian(validation)(lam),
        )
    )(LAM)
    truth = jax.grad(closed_form)(LAM)
    assert relative_error(reverse, truth) < 1e-12
    assert relative_error(forward, truth) < 1e-12
    assert relative_error(second, jax.hessian(closed_form)(LAM)) < 1e-10


def test_jacobian_of_the_solution_solves_several_right_hand_sides_at_once():
    def solution(lam):
        return EXACT(jnp.zeros(2), lam, (X, Y))

    def truth(lam):
        return jnp.linalg.solve(X.T @ X / 3 + jnp.diag(jnp.exp(lam)), X.T @ Y / 3)

    assert relative_error(jax.jit(jax.jacrev(solution))(LAM), jax.jacobian(truth)(LAM)) < 1e-12


def test_derivative_in_the_data():
    def validation_of(x):
        return half_mse(EXACT(jnp.zeros(2), LAM, (x, Y)), LAM, (XV, YV))

    def truth(x):
        w = jnp.linalg.solve(x.T @ x / 3 + jnp.diag(jnp.exp(LAM)), x.T @ Y / 3)
        return half_mse(w, LAM, (XV, YV))

    assert relative_error(jax.jit(jax.grad(validation_of))(X), jax.grad(truth)(X)) < 1e-10


def test_a_map_that_is_not_symmetric_in_both_modes():
    matrix = jnp.array([[2.0, 1.0], [-0.5, 1.0]])

    def optimality(w, lam, batch):
        return matrix @ w + 0.1 * w**3 - lam

    problem = BilevelProblem(None, lambda w, lam, b: jnp.sum(w**2), optimality)
    solve = implicit_solver(problem, Newton(), CG(tol=1e-13))
    lam = jnp.array([1.0, -2.0])
    point, reverse, forward = jax.jit(
        lambda lam: (
            solve(jnp.zeros(2), lam),
            jax.jacrev(lambda lam: solve(jnp.zeros(2), lam))(lam),
            jax.jacfwd(lambda lam: solve(jnp.zeros(2), lam))(lam),
        )
    )(lam)
    truth = jnp.linalg.inv(matrix + jnp.diag(0.3 * point**2))
    assert np.max(np.abs(optimality(point, lam, None))) < 1e-12
    assert relative_error(reverse, truth) < 1e-10
    assert relative_error(forward, truth) < 1e-10


def test_a_singular_system_is_an_error_unless_told_otherwise():
    problem = BilevelProblem(
        lambda w, lam, b: 0.5 * (w[0] ** 2 - w[1] ** 2) + lam * jnp.sum(w),
        lambda w, lam, b: jnp.sum(w),
    )

    def objective(lam, strict):
        solve = implicit_solver(
            problem, lambda w, lam, b: lam * jnp.array([-1.0, 1.0]), strict=strict
        )
        return solve(jnp.ones(2), lam)[1]

    with pytest.raises(eqx.EquinoxRuntimeError, match="linear system"):
        jax.block_until_ready(eqx.filter_jit(jax.grad(lambda lam: objective(lam, True)))(1.0))
    assert jnp.isfinite(jax.grad(lambda lam: objective(lam, False))(1.0))


def test_models_keep_their_other_leaves(key):
    model = eqx.nn.Linear(2, "scalar", key=key)

    def inner(model, lam, batch):
        x, y = batch
        penalty = jnp.exp(lam) * (jnp.sum(model.weight**2) + jnp.sum(model.bias**2))
        return jnp.mean((jax.vmap(model)(x) - y) ** 2) + penalty

    problem = BilevelProblem(inner, lambda model, lam, b: jnp.sum(model.weight**2))
    solve = implicit_solver(problem, OptaxSolver(optax.sgd(0.2), 400), CG(tol=1e-10))

    def objective(lam):
        return problem.outer(solve(model, lam, (X, Y)), lam, None)

    gradient = jax.jit(jax.grad(objective))
    difference = (objective(-1.0 + 1e-4) - objective(-1.0 - 1e-4)) / 2e-4
    assert abs(gradient(-1.0) - difference) < 1e-6 * abs(difference)
