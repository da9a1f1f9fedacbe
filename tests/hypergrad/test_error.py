"""The error estimate covers the true error, from five inner steps to convergence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    Dense,
    ErrorEstimate,
    ForwardUnrolled,
    ImplicitDifferentiation,
    InaccurateHypergradientError,
    Newton,
    OptaxSolver,
    Unrolled,
    hypergradient,
)
from tests.hypergrad.problems import (
    RIDGE,
    XV,
    YV,
    X,
    Y,
    dense_hypergradient,
    logistic,
    mlp,
    solved,
)  # fmt: skip


@pytest.mark.parametrize("make", [logistic, mlp])
def test_estimate_covers_the_true_error(make):
    problem, params, lam, train, valid = make()
    star = solved(problem, params, lam, train)
    truth = dense_hypergradient(problem, star, lam, train, valid)
    estimator = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(0.3), jnp.asarray(5)), CG(tol=jnp.asarray(0.1))
    )
    if make is mlp:
        # Not convex: from a start near the solution, so that both mean the same minimum.
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda a: a + 0.003 * jnp.asarray(rng.normal(size=a.shape)), star)

    @eqx.filter_jit
    def measure(steps, tol):
        chosen = eqx.tree_at(
            lambda e: (e.solver.steps, e.linear_solver.tol), estimator, (steps, tol)
        )
        state = chosen.init(problem, params, lam, train)
        state, _ = chosen.fit(problem, state, lam, train)
        out = chosen.hypergradient(problem, state, lam, train, valid)
        flat = jax.flatten_util.ravel_pytree(out.grad)[0]
        return jnp.linalg.norm(flat - truth) / jnp.linalg.norm(flat), out.info.error

    ratios = []
    for steps in (5, 20, 100, 500, 20000):
        for tol in (1e-1, 1e-3, 1e-9):
            true, estimate = measure(jnp.asarray(steps), jnp.asarray(tol))
            assert estimate >= true
            ratios.append(float(estimate / true))
    assert np.mean(np.isfinite(ratios)) > 0.5
    assert np.median(ratios) < 30


@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [
        (Unrolled(optax.sgd(0.3), 60), jnp.bfloat16),
        (ForwardUnrolled(optax.sgd(0.3), 60), jnp.float16),
        (ImplicitDifferentiation(Newton()), jnp.float16),
    ],
)
@pytest.mark.filterwarnings("ignore::hypergrad.InaccurateHypergradientWarning")
def test_half_precision_is_not_judged_by_the_digits_of_float32(estimator, dtype):
    def value(lam):
        hessian = X.T @ X / 3 + np.exp(lam) * np.eye(2)
        return 0.5 * np.mean((XV @ np.linalg.solve(hessian, X.T @ Y / 3) - YV) ** 2)

    truth = (value(-1 + 1e-4) - value(-1 - 1e-4)) / 2e-4
    data = jax.tree.map(lambda a: a.astype(dtype), ((X, Y), (XV, YV)))
    start = jnp.zeros(2, dtype), jnp.asarray(-1.0, dtype)
    out = hypergradient(RIDGE, *start, *data, estimator=estimator)
    true = abs(float(out.grad) - truth) / abs(float(out.grad))
    assert jnp.finfo(jnp.float32).eps < true <= out.info.error < 1


def test_strict_refuses_five_inner_steps():
    problem, params, lam, train, valid = logistic()
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(0.3), 5))
    with pytest.raises(InaccurateHypergradientError, match="exceeds its norm"):
        hypergradient(problem, params, lam, train, valid, estimator=estimator, strict=True)
    star = solved(problem, params, lam, train)
    out = hypergradient(problem, star, lam, train, valid, estimator=estimator, strict=True)
    assert out.info.error < 1e-4


def test_damping_shows_in_the_estimate():
    problem, params, lam, train, valid = logistic(rows=20, features=3, classes=2)
    star = solved(problem, params, lam, train)
    truth = dense_hypergradient(problem, star, lam, train, valid)
    estimator = ImplicitDifferentiation(damping=0.1)
    out = hypergradient(problem, star, lam, train, valid, estimator=estimator)
    flat = out.grad.ravel()
    true = jnp.linalg.norm(flat - truth) / jnp.linalg.norm(flat)
    assert true > 0.05
    assert true <= out.info.error <= 3 * true


def test_switched_off_costs_nothing_and_is_unknown():
    problem, params, lam, train, valid = logistic(rows=20, features=3, classes=2)
    star = solved(problem, params, lam, train)
    matrices = []
    for error_estimate in (True, ErrorEstimate(safety=4.0), ErrorEstimate(dense=0), False):
        estimator = ImplicitDifferentiation(error_estimate=error_estimate)
        state = estimator.init(problem, star, lam, train)
        program = str(
            jax.make_jaxpr(
                lambda state, e=estimator: (
                    e.hypergradient(problem, state, lam, train, valid).info.error
                )
            )(state)
        )
        matrices.append((program.count("eigh["), program.count("while[")))
    # A matrix that is decomposed, or the two loops of MINRES, beyond the one of CG.
    assert matrices == [(1, 1), (1, 1), (0, 3), (0, 1)]


def test_what_an_estimate_costs_is_counted():
    """Three rounds of four gradients and products, and the solves: a matrix, or Krylov steps."""
    problem, params, lam, train, valid = logistic()
    spent = {}
    for name, options in (("dense", {}), ("cg", {"solver": CG(tol=0.1)})):
        estimator = ImplicitDifferentiation(error_estimate=ErrorEstimate(**options))
        state = estimator.init(problem, params, lam, train)
        spent[name] = int(
            estimator.hypergradient(problem, state, lam, train, valid).info.error_calls
        )
    size = jax.flatten_util.ravel_pytree(params)[0].size
    assert spent["dense"] == 12 + size
    assert 12 < spent["cg"] <= 12 + 5 * size


def test_an_inner_residual_along_weak_directions_is_counted():
    # 300 parameters, condition 1e7, evenly on a log scale: what two Newton steps by MINRES leave of
    # the way to the solution moves the hypergradient more than what they took.
    rng, size = np.random.default_rng(1), 300
    values = jnp.asarray(np.geomspace(10.0 ** -rng.uniform(2, 12), 1, size))
    q = jnp.asarray(np.linalg.qr(rng.normal(size=(size, size)))[0])
    star, c, tilt = q @ rng.normal(size=size), rng.normal(size=size), np.cos(np.arange(size))
    problem = BilevelProblem(
        lambda w, lam, target: (
            0.5 * jnp.sum(values * jnp.exp(lam * tilt) * (q.T @ w) ** 2) - target @ w
        ),
        lambda w, lam, b: c @ w,
    )
    drift = jax.random.normal(jax.random.key(1), (size,))
    drift = q @ (q.T @ drift / (values + 1e-3))
    point = star + 1e-4 * drift * jnp.linalg.norm(star) / jnp.linalg.norm(drift)
    truth = -jnp.sum((q.T @ c) * tilt * (q.T @ star))
    out = hypergradient(
        problem,
        point,
        0.0,
        q @ (values * (q.T @ star)),
        estimator=ImplicitDifferentiation(None, Dense()),
    )
    error = abs(out.grad / truth - 1)
    assert error > 1e-5
    assert error / 3 < out.info.error < 30 * error
