"""Two faults of the libraries underneath, which give silently wrong hypergradients elsewhere.

1. XLA's CPU compiler (jaxlib 0.10.2): the Hessian-vector product of softmax regression at a vector
   of zeros made inside the program is garbage or NaN at some sizes.
2. lineax.CG (0.1.1) in float32 returns NaN for large, perfectly conditioned systems.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, ImplicitDifferentiation, OptaxSolver
from hypergrad.linear import symmetric_operator
from hypergrad.linear.cg import CG


@pytest.mark.parametrize(("rows", "features", "classes"), [(20000, 20, 10), (5000, 64, 10)])
def test_nothing_is_applied_to_zeros_made_inside_the_program(rows, features, classes):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, features)), jnp.float32)

    def inner(w, lam, x):
        return -jnp.mean(jax.nn.log_softmax(x @ w)[:, 0]) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)

    def outer(w, lam, x):
        return -jnp.mean(jax.nn.log_softmax(x @ w)[:, 1])

    problem = BilevelProblem(inner, outer)
    estimator = ImplicitDifferentiation(linear_solver=CG(tol=1e-5))

    @eqx.filter_jit
    def whole(lam, x):
        # Zero params, and with them the zero adjoint of the first call, are made in here.
        params = jnp.zeros((features, classes), jnp.float32)
        state = estimator.init(problem, params, lam, x)
        out = estimator.hypergradient(problem, state, lam, x, x)
        return out.grad, out.info, state.scale, state.adjoint

    lam = jnp.asarray(-1.0, jnp.float32)
    grad, info, scale, adjoint = whole(lam, x)
    # At w = 0 the mixed derivative is zero, and the scale is that of the gradient alone.
    first = jax.grad(inner)(jnp.zeros((features, classes), jnp.float32), lam, x)
    np.testing.assert_allclose(scale, jnp.linalg.norm(first), rtol=1e-4)
    assert grad == 0
    assert info.linear_residual < 1e-5
    assert not info.breakdown
    assert not info.nonpositive_curvature
    assert not jnp.any(adjoint)


def test_warm_zero_adjoint_equals_no_warm_start():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20000, 20)), jnp.float32)

    def inner(w, lam, x):
        return -jnp.mean(jax.nn.log_softmax(x @ w)[:, 0]) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)

    problem = BilevelProblem(inner, lambda w, lam, x: -jnp.mean(jax.nn.log_softmax(x @ w)[:, 1]))
    params = jnp.asarray(0.1 * rng.normal(size=(20, 10)), jnp.float32)
    grads = []
    for warm in (True, False):
        estimator = ImplicitDifferentiation(
            OptaxSolver(optax.sgd(0.1), 0), warm_start=warm, error_estimate=False
        )

        @eqx.filter_jit
        def whole(lam, x, params, estimator=estimator):
            state = estimator.init(problem, params, lam, x)
            return estimator.hypergradient(problem, state, lam, x, x).grad

        grads.append(whole(jnp.asarray(-1.0, jnp.float32), x, params))
    wide = x.astype(jnp.float64)
    w = params.astype(jnp.float64)
    hessian = jax.hessian(inner)(w, -1.0, wide).reshape(200, 200)
    q = jnp.linalg.solve(hessian, jax.grad(problem.outer)(w, -1.0, wide).ravel())
    truth = -jnp.exp(-1.0) * w.ravel() @ q
    np.testing.assert_allclose(grads, truth, rtol=1e-3)


def test_conjugate_gradient_in_float32_at_a_million_unknowns():
    b = jnp.ones(1_000_000, jnp.float32)
    solution = jax.jit(lambda b: CG().solve(symmetric_operator(lambda v: 2 * v), b))(b)
    assert solution.products == 1
    np.testing.assert_allclose(solution.value[:5], 0.5, rtol=1e-6)
    assert solution.residual < 1e-6
