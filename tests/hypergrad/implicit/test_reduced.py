"""Three levels: a bilevel problem's solver as the inner solver, exact on quadratics."""

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    FunctionSolver,
    ImplicitDifferentiation,
    Newton,
    OptaxSolver,
    Reduced,
    hypergradient,
)
from tests.hypergrad.problems import relative_error

A = jnp.array([[2.0, 0.3], [0.3, 1.0]])
B = jnp.array([[1.0, -0.5], [0.2, 0.8]])
MU = jnp.array([0.7, -1.1])
TARGET = jnp.array([1.0, 2.0])


def lowest(w, both, batch):
    lam, mu = both
    return 0.5 * w @ A @ w - w @ (B @ lam + jnp.sin(mu))


def middle(w, both, batch):
    lam, mu = both
    return 0.5 * jnp.sum((w - TARGET) ** 2) + 0.5 * jnp.sum(jnp.exp(mu) * lam**2)


def highest(lam, mu, w):
    return jnp.sum(lam**2) + jnp.sum(w * TARGET) + mu @ mu


def closed_form(mu):
    # w = P λ + c; λ minimises ½‖P λ + c − t‖² + ½ λᵀ diag(e^μ) λ.
    p, c = jnp.linalg.solve(A, B), jnp.linalg.solve(A, jnp.sin(mu))
    lam = jnp.linalg.solve(p.T @ p + jnp.diag(jnp.exp(mu)), p.T @ (TARGET - c))
    return highest(lam, mu, p @ lam + c)


EXACT = CG(tol=1e-14)
LOWER = Reduced(BilevelProblem(lowest, middle), Newton(), jnp.zeros(2), EXACT)
THREE = BilevelProblem(LOWER, lambda lam, mu, _: highest(lam, mu, LOWER.solution(lam, mu)))


def descend(lam, mu, batch):
    """The two lower levels solved as anybody would: gradient descent on hypergradients."""
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(0.5), 200), EXACT)

    def step(_, lam):
        grad = hypergradient(LOWER.problem, jnp.zeros(2), (lam, mu), estimator=estimator).grad[0]
        return lam - 0.5 * grad

    return jax.lax.fori_loop(0, 80, step, lam)


@pytest.mark.parametrize("solver", [Newton(), FunctionSolver(descend)], ids=["newton", "bilevel"])
def test_three_levels_are_exact_on_a_quadratic(solver):
    out = hypergradient(THREE, jnp.zeros(2), MU, estimator=ImplicitDifferentiation(solver, EXACT))
    assert abs(out.value - closed_form(MU)) < 1e-10
    assert relative_error(out.grad, jax.grad(closed_form)(MU)) < 1e-9
    assert out.info.error < 1e-6


def test_auxiliary_output_is_refused():
    problem = BilevelProblem(lowest, middle, has_aux=True)
    with pytest.raises(ValueError, match="has_aux"):
        Reduced(problem, Newton(), jnp.zeros(2))
