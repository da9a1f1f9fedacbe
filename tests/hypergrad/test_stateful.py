"""Arrays that the inner loss renews and nothing trains, against closed forms and plain loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import (
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    OptaxSolver,
    Stateful,
    Unrolled,
    hypergradient,
)
from hypergrad.linear import GMRES
from tests.hypergrad.problems import XV, YV, X, Y, relative_error, ridge_inner

DECAY = 0.8
LAM = jnp.array([-1.0, 0.5])


def loss(params, lam, batch):
    weights, state = params
    power = jnp.mean((batch[0] @ weights) ** 2)
    moved = {
        "power": DECAY * state["power"] + (1 - DECAY) * power,
        "seen": state["seen"] + 1,
    }
    return ridge_inner(weights, lam, batch), moved


def outer(params, lam, batch):
    weights, state = params
    prediction = batch[0] @ weights / jnp.sqrt(state["power"] + 0.1)
    return 0.5 * jnp.mean((prediction - batch[1]) ** 2)


PROBLEM = BilevelProblem(None, outer, Stateful(loss))
START = (jnp.zeros(2), {"power": jnp.ones(()), "seen": jnp.zeros((), jnp.int32)})


def closed_form(lam):
    weights = jnp.linalg.solve(X.T @ X / 3 + jnp.diag(jnp.exp(lam)), X.T @ Y / 3)
    return outer((weights, {"power": jnp.mean((X @ weights) ** 2)}), lam, (XV, YV))


@pytest.mark.parametrize(
    "solver", [OptaxSolver(optax.sgd(0.4), 400, 1e-13), Newton()], ids=["optax", "newton"]
)
def test_implicit_differentiation_goes_through_the_state(solver):
    estimator = ImplicitDifferentiation(solver, GMRES(tol=1e-13))
    out = hypergradient(PROBLEM, START, LAM, (X, Y), (XV, YV), estimator=estimator)
    assert abs(out.value - closed_form(LAM)) < 1e-11
    assert relative_error(out.grad, jax.grad(closed_form)(LAM)) < 1e-10
    assert out.info.error < 1e-8
    if isinstance(solver, OptaxSolver):
        # A counter in the state is carried along.
        assert out.state.params[1]["seen"] == out.info.inner_iterations > 50


def test_unrolling_differentiates_the_states_of_the_run():
    steps = 7
    hparams = {"lam": LAM, "rate": jnp.asarray(-1.5)}

    def of(function):
        return lambda params, hparams, batch: function(params, hparams["lam"], batch)

    problem = BilevelProblem(None, of(outer), Stateful(of(loss)))

    def by_hand(hparams):
        weights, state = START
        for _ in range(steps):
            gradient = jax.grad(lambda w: loss((w, START[1]), hparams["lam"], (X, Y))[0])(weights)
            _, state = loss((weights, state), hparams["lam"], (X, Y))
            weights = weights - jnp.exp(hparams["rate"]) * gradient
        return outer((weights, state), hparams["lam"], (XV, YV))

    estimator = Unrolled(lambda hparams: optax.sgd(jnp.exp(hparams["rate"])), steps)
    out = hypergradient(problem, START, hparams, (X, Y), (XV, YV), estimator=estimator)
    value, grad = jax.value_and_grad(by_hand)(hparams)
    assert abs(out.value - value) < 1e-13
    assert relative_error(out.grad, grad) < 1e-12
    assert out.state.params[1]["seen"] == steps


def test_a_loss_that_reads_its_state():
    # The state is a running mean of the targets, which the loss subtracts.
    def centred(params, lam, batch):
        weights, mean = params
        x, y = batch
        return ridge_inner(weights, lam, (x, y - mean)), 0.5 * mean + 0.5 * jnp.mean(
            y - x @ weights
        )

    def fixed_point(lam):
        # Both conditions are linear: mean = mean(y − x w), (xᵀx/3 + e^λ) w = xᵀ(y − mean)/3.
        matrix = jnp.block(
            [
                [X.T @ X / 3 + jnp.diag(jnp.exp(lam)), jnp.mean(X, 0)[:, None]],
                [jnp.mean(X, 0)[None], jnp.ones((1, 1))],
            ]
        )
        solved = jnp.linalg.solve(matrix, jnp.append(X.T @ Y / 3, jnp.mean(Y)))
        return jnp.mean((XV @ solved[:2] + solved[2] - YV) ** 2)

    problem = BilevelProblem(
        None, lambda p, lam, b: jnp.mean((b[0] @ p[0] + p[1] - b[1]) ** 2), Stateful(centred)
    )
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(0.3), 600, 1e-13), GMRES(tol=1e-13))
    start = (jnp.zeros(2), jnp.zeros(()))
    out = hypergradient(problem, start, LAM, (X, Y), (XV, YV), estimator=estimator)
    assert relative_error(out.grad, jax.grad(fixed_point)(LAM)) < 1e-9


@pytest.mark.parametrize(
    ("params", "function", "match"),
    [
        (START[0], loss, r"pair \(weights, state\), received"),
        (START, lambda p, lam, b: loss(p, lam, b)[0], r"expected \(loss, next state\)"),
        (START, lambda p, lam, b: (loss(p, lam, b)[0], {"power": 1.0}), "form of the state"),
        (START, lambda p, lam, b: (lam, p[1]), "real scalar, received shape"),
    ],
)
def test_bad_input(params, function, match):
    with pytest.raises(ValueError, match=match):
        Stateful(function)(params, LAM, (X, Y))


def test_batch_normalisation_of_equinox():
    # Also a state that is a class of its own: `eqx.nn.State`.
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode="batch")

    def applied(norm, state, x, inference):
        run = jax.vmap(
            lambda row, state: norm(row, state, inference=inference),
            axis_name="batch",
            in_axes=(0, None),
            out_axes=(0, None),
        )
        return run(x, state)

    def inner(params, lam, batch):
        norm, state = params
        out, moved = applied(norm, state, batch[0], False)
        decay = jnp.exp(lam) * (jnp.sum(norm.weight**2) + jnp.sum(norm.bias**2))
        return jnp.mean((jnp.sum(out, 1) - batch[1]) ** 2) + decay, moved

    def validation(params, lam, batch):
        out, _ = applied(*params, batch[0], True)
        return jnp.mean((jnp.sum(out, 1) - batch[1]) ** 2)

    problem = BilevelProblem(None, validation, Stateful(inner))
    estimator = Unrolled(lambda _: optax.sgd(0.1), 3)

    def value(lam):
        return hypergradient(problem, (norm, state), lam, (X, Y), (XV, YV), estimator=estimator)

    out, shift = value(-1.0), 1e-3
    difference = (value(-1.0 + shift).value - value(-1.0 - shift).value) / (2 * shift)
    assert abs(out.grad - difference) < 1e-3 * abs(difference)
