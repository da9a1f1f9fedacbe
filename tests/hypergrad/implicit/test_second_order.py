"""Derivatives of hypergradients, against derivatives of the closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    ImplicitDifferentiation,
    OptaxSolver,
    Unrolled,
    hypergradient,
)
from hypergrad.unrolled import StepFunction
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse, relative_error

LAM = jnp.array([-1.0, 0.5])
EXACT = ImplicitDifferentiation(OptaxSolver(optax.sgd(0.4), 400, 1e-14), CG(tol=1e-13))


def closed_form(lam, targets=Y):
    w = jnp.linalg.solve(X.T @ X / 3 + jnp.diag(jnp.exp(lam)), X.T @ targets / 3)
    return half_mse(w, lam, (XV, YV))


def answer(lam, targets=Y):
    return hypergradient(RIDGE, jnp.zeros(2), lam, (X, targets), (XV, YV), estimator=EXACT)


def test_both_modes_of_value_gradient_solution_and_data():
    def several(lam, targets):
        out = answer(lam, targets)
        return out.value, out.grad, out.state.params

    def truth(lam, targets):
        w = jnp.linalg.solve(X.T @ X / 3 + jnp.diag(jnp.exp(lam)), X.T @ targets / 3)
        return closed_form(lam, targets), jax.grad(closed_form)(lam, targets), w

    reverse, forward = jax.jit(
        lambda *a: (jax.jacrev(several, (0, 1))(*a), jax.jacfwd(several, (0, 1))(*a))
    )(LAM, Y)
    expected = jax.jacobian(truth, (0, 1))(LAM, Y)
    assert relative_error(reverse, expected) < 1e-10
    assert relative_error(forward, expected) < 1e-10
    # What is returned is what is returned without a derivative.
    assert relative_error(answer(LAM).grad, jax.grad(closed_form)(LAM)) < 1e-11


def test_the_rate_of_an_outer_descent_is_tuned_by_unrolling_it():
    def descend(lam, state, rate, batch):
        return lam - jnp.exp(rate) * answer(lam).grad, state

    def by_hand(rate):
        lam = LAM
        for _ in range(3):
            lam = lam - jnp.exp(rate) * jax.grad(closed_form)(lam)
        return closed_form(lam)

    problem = BilevelProblem(
        lambda lam, rate, b: closed_form(lam), lambda lam, rate, b: closed_form(lam)
    )
    out = hypergradient(problem, LAM, -0.5, estimator=Unrolled(StepFunction(descend), 3))
    assert abs(out.grad - jax.grad(by_hand)(-0.5)) < 1e-10


class Shifted(eqx.Module):
    shift: jax.Array

    def __call__(self, w, lam, batch):
        return half_mse(w, lam, batch) + self.shift * jnp.sum(w)


def test_what_a_loss_holds_as_a_field_and_what_it_closes_over():
    def of(outer):
        problem = BilevelProblem(RIDGE.inner, outer)
        out = hypergradient(problem, jnp.zeros(2), LAM, (X, Y), (XV, YV), estimator=EXACT)
        return jnp.sum(out.grad)

    def truth(shift):
        w = lambda lam: jnp.linalg.solve(  # noqa: E731
            X.T @ X / 3 + jnp.diag(jnp.exp(lam)), X.T @ Y / 3
        )
        return jnp.sum(jax.grad(lambda lam: closed_form(lam) + shift * jnp.sum(w(lam)))(LAM))

    expected, shift = jax.grad(truth)(0.3), jnp.asarray(0.3)
    assert abs(jax.grad(lambda s: of(Shifted(s)))(shift) - expected) < 1e-10

    def closing_over(shift):
        return of(lambda w, lam, b: Shifted(shift)(w, lam, b))

    assert abs(jax.jvp(closing_over, (shift,), (jnp.ones(()),))[1] - expected) < 1e-10
    for differentiate in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(ValueError, match="Reverse-mode"):
            differentiate(closing_over)(shift)
