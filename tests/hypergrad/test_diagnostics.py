"""`check_hypergradient` finds right hypergradients right and wrong ones wrong."""

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import (
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    OptaxSolver,
    check_hypergradient,
)
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse, ridge_inner

LAM = {"weights": jnp.array([-1.0, 0.5]), "shift": jnp.asarray(0.3)}
NESTED = BilevelProblem(
    lambda w, lam, batch: ridge_inner(w, lam["weights"], batch) + lam["shift"] * w[0],
    lambda w, lam, batch: half_mse(w, lam, batch) + 0.1 * lam["shift"] ** 2,
)


def test_a_right_hypergradient_is_ok_and_the_report_readable():
    report = check_hypergradient(
        NESTED, jnp.zeros(2), LAM, (X, Y), (XV, YV), estimator=ImplicitDifferentiation(Newton())
    )
    assert report.ok
    assert report.error < 1e-6
    assert [d.name for d in report.directions] == [
        "random 1",
        "random 2",
        "random 3",
        "shift",
        "weights",
    ]
    text = str(report)
    assert "OK: the hypergradient agrees" in text
    assert "weights" in text


def test_an_unsolved_inner_problem_is_found():
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(0.1), 5))
    report = check_hypergradient(NESTED, jnp.zeros(2), LAM, (X, Y), (XV, YV), estimator=estimator)
    assert not report.ok
    assert "NOT OK" in str(report)
    assert "not stationary" in str(report)


def test_a_wrong_derivative_is_found():
    @jax.custom_jvp
    def wrong(x):
        return x**2

    wrong.defjvp(lambda primals, tangents: (primals[0] ** 2, 3 * primals[0] * tangents[0]))
    problem = BilevelProblem(
        ridge_inner, lambda w, lam, b: half_mse(w, lam, b) + 0.1 * jnp.sum(wrong(lam))
    )
    report = check_hypergradient(
        problem,
        jnp.zeros(2),
        LAM["weights"],
        (X, Y),
        (XV, YV),
        directions=1,
        estimator=ImplicitDifferentiation(Newton()),
    )
    assert not report.ok
    assert "WRONG" in str(report)


def test_float32_has_its_own_tolerance():
    arguments = jax.tree.map(
        lambda a: a.astype(jnp.float32),
        (jnp.zeros(2), jnp.asarray(-1.0), (X, Y), (XV, YV)),
    )
    report = check_hypergradient(
        RIDGE, *arguments, directions=1, estimator=ImplicitDifferentiation(Newton())
    )
    assert report.ok
    assert report.tolerance == 5e-2


def test_nothing_to_check():
    with pytest.raises(ValueError, match="nothing to differentiate"):
        check_hypergradient(RIDGE, jnp.zeros(2), 3, (X, Y), (XV, YV))
