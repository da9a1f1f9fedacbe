"""Optimizers that find their own learning rate, as inner solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import contrib

from hypergrad import (
    CG,
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    OptaxSolver,
)

KEYS = jax.random.split(jax.random.key(3), 3)
X = jax.random.normal(KEYS[0], (40, 4))
XV = jax.random.normal(KEYS[1], (20, 4))
TRUTH = jnp.array([1.0, -0.5, 0.3, 0.0])
NOISE = 0.3 * jax.random.normal(KEYS[2], (40,))


def ridge(w, log_penalty, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.exp(log_penalty) * w @ w


def logistic(w, log_penalty, batch):
    x, y = batch
    signs = jnp.where(y > 0, 1.0, -1.0)
    return jnp.mean(jax.nn.softplus(-signs * (x @ w))) + 0.5 * jnp.exp(log_penalty) * w @ w


def either(w, log_penalty, batch):
    """One program serves both: the batch says which."""
    *data, squares = batch
    return jnp.where(squares, ridge(w, log_penalty, data), logistic(w, log_penalty, data))


def unpenalised(w, log_penalty, batch):
    return either(w, -jnp.inf, batch)


PROBLEM = BilevelProblem(either, unpenalised)
RIDGE = BilevelProblem(ridge, ridge)
TRAIN, VALID = (X, X @ TRUTH + NOISE), (XV, XV @ TRUTH)
AT, START, STEPS = jnp.asarray(-1.0), jnp.full(4, 0.1), 6000
EXACT = ImplicitDifferentiation(Newton(tol=1e-10), CG(tol=1e-10), error_estimate=False)

#: Rates are the defaults where there are any. `mechanize(optax.sgd(1.0))` is not among them: after
#: 6,000 steps its hypergradient of ridge regression is 3e-3 off, with and without its decay.
SOLVERS = {
    "momo": contrib.momo(1.0),
    "momo_adam": contrib.momo_adam(0.1),
    "prodigy": contrib.prodigy(),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dog": contrib.dog(1.0),
    "dowg": contrib.dowg(),
    "cocob": contrib.cocob(),
    "schedule_free_adamw": contrib.schedule_free_adamw(0.1),
}


@jax.jit
def hypergradient_at(point, squares):
    """By the derivative at a point that was found elsewhere: compiled once for all solvers."""
    train, valid = (*TRAIN, squares), (*VALID, squares)
    state = EXACT.init(PROBLEM, point, AT, train)
    return EXACT.hypergradient(PROBLEM, state, AT, train, valid).grad


@pytest.fixture(scope="module")
def truth():
    solve = jax.jit(lambda squares: EXACT.solver.run(PROBLEM, START, AT, (*TRAIN, squares)).params)
    return [hypergradient_at(solve(squares), squares) for squares in (True, False)]


@pytest.mark.parametrize("name", SOLVERS)
def test_hypergradients_are_those_of_newton(name, truth):
    solver = OptaxSolver(SOLVERS[name], STEPS, tol=1e-7)
    solve = jax.jit(lambda squares: solver.run(PROBLEM, START, AT, (*TRAIN, squares)).params)
    for squares, exact in zip((True, False), truth, strict=True):
        assert abs(hypergradient_at(solve(squares), squares) / exact - 1) < 1e-3


def test_schedule_free_answers_with_its_average_and_goes_on():
    problem, optimizer = RIDGE, contrib.schedule_free_sgd(0.3)
    whole = OptaxSolver(optimizer, 20).run(problem, START, AT, TRAIN)
    half = OptaxSolver(optimizer, 10)
    first = half.run(problem, START, AT, TRAIN)
    second = half.run(problem, first.params, AT, TRAIN, state=first.state)
    np.testing.assert_allclose(second.params, whole.params, rtol=1e-9)
    # By hand: z takes steps from y, x is the mean of z.
    x = z = START
    for count in range(1, 21):
        y = 0.9 * x + 0.1 * z
        z = z - 0.3 * jax.grad(ridge)(y, AT, TRAIN)
        x = x + (z - x) / count
    np.testing.assert_allclose(whole.params, x, rtol=1e-9)
    residual = jnp.linalg.norm(jax.grad(ridge)(x, AT, TRAIN))
    np.testing.assert_allclose(whole.residual, residual, rtol=1e-6)


def test_a_rate_that_was_found_is_kept():
    optimizer = contrib.prodigy()
    whole = OptaxSolver(optimizer, 40).run(RIDGE, START, AT, TRAIN)
    half = OptaxSolver(optimizer, 20)
    first = half.run(RIDGE, START, AT, TRAIN)
    second = half.run(RIDGE, first.params, AT, TRAIN, state=first.state)
    np.testing.assert_allclose(second.params, whole.params, rtol=1e-10)
