"""Risk estimates against closed forms of ridge regression, and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import ImplicitDifferentiation, Newton, hypergradient
from hypergrad.linear import CG
from hypergrad.outer import Alternating, run
from hypergrad.risk import GCV, SURE, divergence, multi_task_ridge_risk

SIGMA, N, D = 0.5, 24, 6
X = jax.random.normal(jax.random.key(0), (N, D))
TRUTH = jnp.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
Y = X @ TRUTH + SIGMA * jax.random.normal(jax.random.key(1), (N,))
SOLVER, LINEAR = Newton(), CG(tol=1e-12)
SOLVED = ImplicitDifferentiation(SOLVER, LINEAR)
LAM = jnp.asarray(0.7)


def ridge(w, lam, y):
    return 0.5 * jnp.sum((X @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def smoother(lam):
    return X @ jnp.linalg.solve(X.T @ X + jnp.exp(lam) * jnp.eye(D), X.T)


def sure(lam):
    a = smoother(lam)
    return jnp.sum((Y - a @ Y) ** 2) + SIGMA**2 * (2 * jnp.trace(a) - N)


def gcv(lam):
    a = smoother(lam)
    return N * jnp.sum((Y - a @ Y) ** 2) / (N - jnp.trace(a)) ** 2


def predict(w, lam):
    return X @ w


PROBLEMS = {
    "sure": (SURE(ridge, predict, SIGMA, SOLVER, LINEAR), sure),
    "gcv": (GCV(ridge, predict, SOLVER, LINEAR), gcv),
}


def found(problem, lam):
    return hypergradient(problem, jnp.zeros(D), lam, Y, Y, estimator=SOLVED)


@pytest.mark.parametrize("name", PROBLEMS)
def test_of_ridge_regression_value_and_hypergradient_are_the_closed_form(name):
    problem, closed = PROBLEMS[name]
    value, slope = jax.value_and_grad(closed)(LAM)
    here = found(problem, LAM)
    np.testing.assert_allclose(here.value, value, rtol=1e-9)
    np.testing.assert_allclose(here.grad, slope, rtol=1e-7)


def test_of_a_fit_that_is_not_linear_the_hypergradient_is_that_of_fitting_anew():
    """Smoothed total variation in one dimension, with probes: central differences."""
    y = jnp.repeat(jnp.array([0.0, 1.0, -0.5]), 8) + 0.2 * jax.random.normal(
        jax.random.key(2), (24,)
    )

    def inner(u, lam, y):
        rough = jnp.sum(jnp.sqrt(jnp.diff(u) ** 2 + 0.01))
        return 0.5 * jnp.sum((u - y) ** 2) + jnp.exp(lam) * rough

    problem = SURE(inner, lambda u, lam: u, 0.2, SOLVER, LINEAR, probes=4, key=jax.random.key(3))
    value = lambda lam: hypergradient(problem, y, lam, y, y, estimator=SOLVED)  # noqa: E731
    here, step = value(jnp.asarray(-1.0)), 1e-4
    difference = (value(-1.0 + step).value - value(-1.0 - step).value) / (2 * step)
    np.testing.assert_allclose(here.grad, difference, rtol=1e-5)


def test_the_best_penalty_is_found():
    grid = jnp.linspace(-4.0, 6.0, 2001)
    best = grid[jnp.argmin(jax.vmap(sure)(grid))]
    loop = Alternating(SOLVED, optax.adam(0.2))
    result = run(PROBLEMS["sure"][0], loop, jnp.zeros(D), LAM, Y, Y, steps=80, every=80)
    np.testing.assert_allclose(result.hparams, best, atol=0.02)


def test_probes_estimate_the_divergence():
    matrix = jax.random.normal(jax.random.key(4), (30, 30)) / 30 + jnp.eye(30)
    exact = divergence(lambda y: matrix @ y, jnp.zeros(30))
    np.testing.assert_allclose(exact, jnp.trace(matrix), rtol=1e-12)
    several = divergence(lambda y: matrix @ y, jnp.zeros(30), 2000, jax.random.key(5))
    np.testing.assert_allclose(several, exact, rtol=0.01)
    assert abs(float(several - exact)) > 0


def test_the_risk_of_multi_task_ridge_is_what_repetition_shows():
    """In the mean over noise; and without coupling, the sum of the tasks."""
    truth = jnp.stack([TRUTH, TRUTH + 0.3, -TRUTH], axis=1)
    coupling = jnp.array([[3.0, -1.0, 0.2], [-1.0, 2.0, 0.0], [0.2, 0.0, 1.5]])
    risk = multi_task_ridge_risk(X, truth, SIGMA, coupling)
    matrix = jnp.kron(jnp.eye(3), X.T @ X) + jnp.kron(coupling, jnp.eye(D))

    def once(key):
        y = X @ truth + SIGMA * jax.random.normal(key, (N, 3))
        w = jnp.linalg.solve(matrix, (X.T @ y).T.reshape(-1)).reshape(3, D).T
        return jnp.sum((X @ (w - truth)) ** 2)

    losses = jax.vmap(once)(jax.random.split(jax.random.key(6), 20_000))
    error = float(jnp.std(losses) / np.sqrt(20_000))
    assert abs(float(risk - jnp.mean(losses))) < 4 * error
    alone = multi_task_ridge_risk(X, truth, SIGMA, 2 * jnp.eye(3))
    a = smoother(jnp.log(2.0))
    bias = jnp.sum((X @ truth - a @ X @ truth) ** 2)
    np.testing.assert_allclose(alone, bias + 3 * SIGMA**2 * jnp.sum(a**2), rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SURE(ridge, predict, 0.0, SOLVER), "sigma"),
        (lambda: SURE(ridge, predict, 1.0, SOLVER, probes=0), "probes"),
        (lambda: GCV(ridge, predict, SOLVER, probes=2), "key"),
        (lambda: found(GCV(ridge, lambda w, lam: w, SOLVER), LAM), "predict"),
        (lambda: multi_task_ridge_risk(X, TRUTH[:, None], 1.0, jnp.eye(2)), "coupling"),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()
