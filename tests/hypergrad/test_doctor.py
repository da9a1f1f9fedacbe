"""The doctor routes each hyperparameter to an estimator that sees it, and the routes are right."""

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import (
    KKT,
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    ProximalStep,
    Routed,
    Stateful,
    hypergradient,
    recommend,
)
from hypergrad.evidence import EvidenceProblem, Exact, Subsets
from hypergrad.gaussian_process import (
    Gaussian,
    GPProblem,
    MarginalLikelihood,
    Probit,
    VariationalGP,
    squared_exponential,
)
from hypergrad.implicit import Reduced
from hypergrad.linear import CG, GMRES, PCG, Dense
from hypergrad.own_family import remarks
from hypergrad.risk import SURE
from hypergrad.sampling import SamplingProblem
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse, logistic, ridge_inner, solved

SPACE = {
    "decay": jnp.asarray(-1.0),
    "rate": jnp.asarray(0.1),
    "optimizer": "sgd",
    "temperature": jnp.asarray(2.0),
}
PROBLEM = BilevelProblem(
    lambda w, lam, batch: ridge_inner(w, lam["decay"], batch),
    lambda w, lam, batch: half_mse(w, None, batch) / lam["temperature"],
)


def test_a_weight_decay_and_a_learning_rate_are_split_and_both_are_right():
    doctor = recommend(
        PROBLEM,
        jnp.zeros(2),
        SPACE,
        (X, Y),
        (XV, YV),
        solver=Newton(),
        update=lambda lam: optax.sgd(lam["rate"]),
        steps=5,
    )
    assert {r.name: r.family for r in doctor.routes} == {
        "decay": "implicit",
        "optimizer": "search",
        "rate": "unrolled",
        "temperature": "implicit",
    }
    assert "outer loss only" in doctor["temperature"].reason
    assert isinstance(doctor.estimator, Routed)
    assert doctor.products == 2
    text = str(doctor)
    assert "training step" in text
    assert "MiB" in text

    out = hypergradient(PROBLEM, jnp.zeros(2), SPACE, (X, Y), (XV, YV), estimator=doctor.estimator)
    assert abs(out.grad["decay"] - 0.08721369186448863 / 2) < 1e-8
    assert abs(out.grad["temperature"] + out.value / 2) < 1e-10
    assert out.grad["optimizer"] is None

    def trained(rate):
        w = jnp.zeros(2)
        for _ in range(5):
            w = w - rate * jax.grad(ridge_inner)(w, -1.0, (X, Y))
        return half_mse(w, None, (XV, YV)) / 2

    difference = (trained(0.1 + 1e-5) - trained(0.1 - 1e-5)) / 2e-5
    assert abs(out.grad["rate"] - difference) < 1e-7


def test_without_a_training_step_it_asks_for_one():
    doctor = recommend(PROBLEM, jnp.zeros(2), SPACE, (X, Y), (XV, YV))
    assert doctor.estimator is None
    assert "pass `update` and `steps`" in str(doctor)
    assert "not stationary" in str(doctor)
    with pytest.raises(ValueError, match="together"):
        recommend(PROBLEM, jnp.zeros(2), SPACE, (X, Y), (XV, YV), steps=3)
    with pytest.raises(KeyError, match="decay"):
        doctor["dropout"]


def test_the_linear_solver_follows_the_curvature():
    params = solved(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    small = recommend(RIDGE, params, -1.0, (X, Y), (XV, YV))
    assert isinstance(small.estimator.linear_solver, Dense)

    problem, params, lam, train, valid = logistic()
    params = solved(problem, params, lam, train)
    easy = recommend(problem, params, lam, train, valid)
    assert isinstance(easy.estimator, ImplicitDifferentiation)
    assert isinstance(easy.estimator.linear_solver, CG)
    assert 5 < easy.products < 24

    diagonal = jnp.geomspace(1e-6, 1e3, 2000)
    hard = BilevelProblem(
        lambda w, lam, b: 0.5 * jnp.sum(diagonal * w**2) - lam * jnp.sum(w),
        lambda w, lam, b: jnp.sum(w),
    )
    doctor = recommend(hard, 1 / diagonal, 1.0)
    assert isinstance(doctor.estimator.linear_solver, PCG)

    far = BilevelProblem(lambda w, lam, b: jnp.sum(lam * jnp.cos(w)), lambda w, lam, b: jnp.sum(w))
    doctor = recommend(far, 0.3 + jnp.arange(20.0), 1.0)
    assert doctor.estimator.damping > 0
    assert "Gauss-Newton" in str(doctor)


def test_a_general_optimality_map_gets_gmres():
    step = ProximalStep(
        lambda w, lam, b: 0.5 * jnp.sum((w - b) ** 2),
        lambda point, lam, step: jnp.sign(point) * jnp.maximum(jnp.abs(point) - step * lam, 0),
    )
    problem = BilevelProblem(None, lambda w, lam, b: jnp.sum(w**2), step)
    doctor = recommend(problem, jnp.array([1.0, 0.0]), 0.5, jnp.array([1.5, 0.2]))
    assert isinstance(doctor.estimator.linear_solver, GMRES)


def test_a_problem_of_another_kind_is_remarked_on():
    loss = lambda *_: jnp.zeros(())  # noqa: E731
    plain = BilevelProblem(loss, loss)
    kinds = {
        "no validation data": SURE(loss, lambda u, _: u, 0.1, Newton()),
        "state that is not trained": BilevelProblem(None, loss, Stateful(loss)),
        "multipliers": BilevelProblem(None, loss, KKT(loss, loss)),
        "lowest level": BilevelProblem(Reduced(plain, Newton(), jnp.zeros(2)), loss),
    }
    assert remarks(plain) == []
    for words, problem in kinds.items():
        (said,) = remarks(problem)
        assert words in said
    # And the doctor says so.
    lam, y = jnp.asarray(-1.0), jnp.array([1.0, 0.2, -0.4])
    inner = lambda u, lam, y: jnp.sum((u - y) ** 2) + jnp.exp(lam) * jnp.sum(u**2)  # noqa: E731
    kind = SURE(inner, lambda u, _: u, 0.1, Newton())
    doctor = recommend(kind, y, lam, y, y, solver=Newton())
    assert doctor.routes[0].family == "implicit"
    assert remarks(kind)[0] in doctor.notes


def test_problems_made_for_an_estimator_get_that_one():
    batch = (jnp.ones((30, 4)), jnp.zeros(30, jnp.int32))
    evidence = EvidenceProblem(lambda w, h, x: x @ w, "categorical", lambda h, w: h["decay"])
    hparams = {"decay": 0.0, "name": "a"}
    small = recommend(evidence, jnp.zeros((4, 3)), hparams, batch)
    assert small["decay"].family == "evidence"
    assert small["name"].family == "search"
    assert small.estimator.bound == Exact()
    many = (jnp.ones((3000, 1000)), jnp.zeros(3000, jnp.int32))
    large = recommend(evidence, jnp.zeros((1000, 3)), hparams, many)
    assert large.estimator.bound == Subsets(666, draws=1)
    for likelihood, expected in (
        (Probit(), VariationalGP),
        (Gaussian(lambda h: -1.0), MarginalLikelihood),
    ):
        kernel = GPProblem(squared_exponential, likelihood)
        found = recommend(kernel, kernel.sites(batch), {"log_sigma": 0.0}, batch)
        assert found["log_sigma"].family == "sites"
        assert type(found.estimator) is expected
    sampler = SamplingProblem(lambda x, t, b: t * x @ x, lambda x, t, b: x @ x)
    assert recommend(sampler, jnp.zeros((64, 1)), {"t": 1.0})["t"].family == "sampling"
