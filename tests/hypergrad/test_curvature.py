"""Gauss-Newton curvature: the right matrix, positive where the Hessian is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hypergrad import (
    CG,
    BilevelProblem,
    GaussNewton,
    ImplicitDifferentiation,
    hypergradient,
)
from tests.hypergrad.problems import relative_error

RNG = np.random.default_rng(0)
XS, YS = jnp.asarray(RNG.normal(size=(20, 3))), jnp.asarray(RNG.normal(size=20))
PARAMS = {"a": jnp.asarray(RNG.normal(size=(3, 4))), "c": jnp.asarray(RNG.normal(size=4))}


def outputs(p, lam, batch):
    return jnp.tanh(batch[0] @ p["a"]) @ p["c"]


def loss(o, lam, batch):
    return jnp.mean((o - batch[1]) ** 2)


def penalty(p, lam):
    return jnp.exp(lam) * sum(jnp.sum(leaf**2) for leaf in p.values())


PROBLEM = BilevelProblem(
    lambda p, lam, batch: loss(outputs(p, lam, batch), lam, batch) + penalty(p, lam),
    lambda p, lam, batch: loss(outputs(p, lam, batch), lam, batch),
)


def test_the_adjoint_is_solved_with_the_gauss_newton_matrix():
    w, unravel = ravel_pytree(PARAMS)
    lam = jnp.asarray(-3.0)
    jacobian = jax.jacobian(lambda w: outputs(unravel(w), lam, (XS, YS)))(w)
    matrix = 2 / 20 * jacobian.T @ jacobian + 2 * jnp.exp(lam) * jnp.eye(w.size)
    hessian = jax.hessian(lambda w: PROBLEM.inner(unravel(w), lam, (XS, YS)))(w)
    assert jnp.linalg.eigvalsh(hessian)[0] < 0 < jnp.linalg.eigvalsh(matrix)[0]
    valid = (XS + 0.1, YS)
    g = jax.grad(lambda w: PROBLEM.outer(unravel(w), lam, valid))(w)
    truth = -2 * jnp.exp(lam) * w @ jnp.linalg.solve(matrix, g)
    estimator = ImplicitDifferentiation(
        linear_solver=CG(tol=1e-12),
        curvature=GaussNewton(outputs, loss, penalty),
        error_estimate=False,
    )
    out = hypergradient(PROBLEM, PARAMS, lam, (XS, YS), valid, estimator=estimator)
    assert relative_error(out.grad, truth) < 1e-9
    assert not out.info.nonpositive_curvature


def test_for_a_linear_model_it_is_the_hessian():
    def linear(w, lam, batch):
        return batch[0] @ w

    def inner(w, lam, batch):
        return loss(linear(w, lam, batch), lam, batch) + lam * jnp.sum(w**2)

    problem = BilevelProblem(inner, lambda w, lam, b: loss(linear(w, lam, b), lam, b))
    hessian = XS.T @ XS / 20
    w = jnp.linalg.solve(hessian + 0.3 * jnp.eye(3), XS.T @ YS / 20)
    grads = [
        hypergradient(
            problem,
            w,
            0.3,
            (XS, YS),
            (XS + 0.1, YS),
            estimator=ImplicitDifferentiation(
                linear_solver=CG(tol=1e-12), error_estimate=False, **options
            ),
        ).grad
        for options in (
            {},
            {"curvature": GaussNewton(linear, loss, lambda w, lam: lam * jnp.sum(w**2))},
        )
    ]
    assert relative_error(*grads) < 1e-10


def test_an_optimality_map_has_no_gauss_newton_matrix():
    problem = BilevelProblem(
        None, PROBLEM.outer, lambda p, lam, batch: jax.tree.map(lambda a: a - lam, p)
    )
    estimator = ImplicitDifferentiation(curvature=GaussNewton(outputs, loss))
    with pytest.raises(ValueError, match="optimality map"):
        hypergradient(problem, PARAMS, -3.0, (XS, YS), (XS, YS), estimator=estimator)
