from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import MAID, Batches, Box, QuasiNewton, ScaledSimplex, Smoothness
from hypergrad.outer.certified import CARRIED, Accuracy, Certifier, Judgement
from hypergrad.problem import BilevelProblem

# A quadratic bilevel problem with known constants: f = ½ wᵀAw − wᵀBλ, F = ½‖w − t‖² + ½ 0.1 ‖λ‖².
INNER, OUTER = 30, 5
RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(INNER, INNER)))[0]
A = jnp.asarray(BASIS @ np.diag(np.linspace(1.0, 20.0, INNER)) @ BASIS.T)
B = jnp.asarray(RNG.normal(size=(INNER, OUTER)))
TARGET = jnp.asarray(RNG.normal(size=INNER))
PROBLEM = BilevelProblem(
    lambda w, h, _: 0.5 * w @ A @ w - w @ B @ h,
    lambda w, h, _: 0.5 * jnp.sum((w - TARGET) ** 2) + 0.05 * jnp.sum(h**2),
)
CONSTANTS = Smoothness(1.0, float(np.linalg.norm(np.asarray(B), 2)), 1.0)
ESTIMATOR = ImplicitDifferentiation(
    OptaxSolver(optax.sgd(1 / 20), steps=5000), CG(max_steps=200), error_estimate=False
)
START = jnp.full(OUTER, 3.0)


def value(h):
    w = jnp.linalg.solve(A, B @ h)
    return PROBLEM.outer(w, h, None)


BEST = np.linalg.solve(
    np.asarray(jax.hessian(value)(START)), -np.asarray(jax.grad(value)(jnp.zeros(OUTER)))
)
step = eqx.filter_jit(lambda algorithm, state: algorithm.step(PROBLEM, state, Batches(None, None)))


def trace(steps=60, gap=1e-2, **options):
    """States and infos until the true outer gap is reached. One compilation serves all starts."""
    options = {
        name: jnp.asarray(value) if isinstance(value, float) else value
        for name, value in options.items()
    }
    algorithm = MAID(ESTIMATOR, **{"smoothness": CONSTANTS, **options})
    state = algorithm.init(PROBLEM, jnp.zeros(INNER), START, Batches(None, None))
    states, infos = [state], []
    for _ in range(steps):
        state, info = step(algorithm, state)
        states.append(state)
        infos.append(info)
        if value(state.hparams) - value(BEST) < gap or int(info.stop):
            break
    return states, infos


@pytest.fixture(scope="module")
def runs():
    """From nine pairs of initial accuracy and step size, three orders of magnitude apart each."""
    return {
        (accuracy, size): trace(inner_tolerance=accuracy, linear_tolerance=accuracy, step_size=size)
        for accuracy in (1e-1, 3e-3, 1e-4)
        for size in (1e-2, 0.3, 10.0)
    }


def test_it_is_robust_to_initial_accuracy_and_step_size(runs):
    cost = {key: sum(int(info.calls) for info in infos) for key, (_, infos) in runs.items()}
    for states, _ in runs.values():
        assert value(states[-1].hparams) - value(BEST) < 1e-2
    assert max(cost.values()) <= 1.5 * min(cost.values()), cost


def test_every_accepted_step_truly_decreases_the_outer_loss(runs):
    for states, infos in runs.values():
        values = [float(value(state.hparams)) for state in states]
        for before, after, info in zip(values, values[1:], infos, strict=False):
            assert bool(info.accepted)
            assert after < before


def test_the_error_bound_holds_and_is_met(runs):
    for states, infos in runs.values():
        for before, after, info in zip(states, states[1:], infos, strict=False):
            truth = jax.grad(value)(before.hparams)
            error = float(jnp.linalg.norm(after.hypergradient - truth))
            bound = float(info.error * info.hypergradient_norm)
            assert error <= bound
            assert bound <= 0.5 * float(info.hypergradient_norm)


def test_loose_solves_are_not_wasted_on_accuracy(runs):
    first = runs[0.1, 0.3][1][0]
    assert float(first.inner_residual) > 1e-4


def test_at_the_solution_it_certifies_and_stops():
    states, infos = trace(steps=200, gap=-1.0, inner_tolerance=0.1, step_size=0.3)
    last = infos[-1]
    assert int(last.stop) == 2
    assert value(states[-1].hparams) - value(BEST) < 1e-10
    assert float(last.hypergradient_norm) < 1e-5


def test_quasi_newton_steps_are_sure_of_their_decrease_and_fewer():
    plain, _ = trace(steps=200, gap=1e-6, step_size=0.3)
    states, _ = trace(steps=200, gap=1e-6, step_size=0.3, metric=QuasiNewton())
    values = [float(value(state.hparams)) for state in states]
    assert all(after < before for before, after in pairwise(values))
    assert values[-1] - value(BEST) < 1e-6
    assert len(states) < len(plain)


def test_without_constants_it_trusts_the_estimators_own_estimate(ridge):
    estimator = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(0.2, momentum=0.8, nesterov=True), steps=5000), CG()
    )
    algorithm = MAID(estimator, constraint=Box(-3.0, 1.0))
    batches = Batches(ridge.inner, ridge.outer)
    state = algorithm.init(ridge.problem, ridge.params, ridge.hparams, batches)
    advance = eqx.filter_jit(algorithm.step)
    for _ in range(12):
        before = state
        state, info = advance(ridge.problem, state, batches)
        truth = jax.grad(ridge.value)(before.hparams)
        error = float(jnp.linalg.norm(state.hypergradient - truth))
        assert error <= 0.5 * float(info.hypergradient_norm)
        assert ridge.value(state.hparams) < ridge.value(before.hparams)
    assert float(info.stationarity) < 0.1 * float(
        jnp.linalg.norm(jax.grad(ridge.value)(ridge.hparams))
    )


def test_losses_are_corrected_by_the_adjoint_itself():
    """From rough solves: a wrong factor leaves as much of the error as there was, or more."""
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(1 / 20), steps=5000), CG())
    none = Batches(None, None)
    state = estimator.init(PROBLEM, jnp.zeros(INNER), START, None)
    certifier = Certifier(estimator, None, PROBLEM, none, None, state.scale)
    rough = Accuracy(jnp.asarray(0.03), jnp.asarray(1e-3))
    here = eqx.filter_jit(certifier.hypergradient)(
        state, START, rough, Judgement.none(rough), jnp.asarray(True)
    )
    nearby = START - 0.01 * here.gradient
    there = eqx.filter_jit(certifier.loss)(state, nearby, rough, here.adjoint)
    for loss, hparams in ((here, START), (there, nearby)):
        truth = value(hparams)
        corrected = (loss.lower + loss.upper) / 2
        assert abs(corrected - truth) < 0.15 * abs(loss.value - truth)
        assert loss.lower <= truth <= loss.upper
    truth = jax.grad(value)(START)
    assert jnp.linalg.norm(here.gradient - truth) <= here.error
    exact = jnp.linalg.solve(A, jnp.linalg.solve(A, B @ START) - TARGET)
    assert jnp.linalg.norm(here.adjoint - exact) < 0.3 * jnp.linalg.norm(exact)


def test_a_hypergradient_is_kept_while_only_the_losses_are_solved_further():
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(1 / 20), steps=5000), CG())
    none = Batches(None, None)
    state = estimator.init(PROBLEM, jnp.zeros(INNER), START, None)
    certifier = Certifier(estimator, None, PROBLEM, none, None, state.scale)
    rough = Accuracy(jnp.asarray(0.03), jnp.asarray(1e-3))
    fine = rough.scaled(0.1, 1)
    assert float(fine.linear) == float(rough.linear)
    here = eqx.filter_jit(certifier.hypergradient)(
        state, START, rough, Judgement.none(rough), jnp.asarray(True)
    )
    loss = eqx.filter_jit(certifier.loss)(here.estimator_state, START, fine, here.adjoint)
    anew = here.judged_anew(loss)
    for kept in ("gradient", "adjoint", "error"):
        np.testing.assert_array_equal(getattr(anew, kept), getattr(here, kept))
    assert anew.upper - anew.lower < 0.2 * (here.upper - here.lower)
    assert anew.lower <= value(START) <= anew.upper
    assert int(anew.calls) == int(anew.iterations) + 2


def test_an_estimated_error_serves_while_it_is_young_and_allows_for_a_step():
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(1 / 20), steps=5000), CG())
    state = estimator.init(PROBLEM, jnp.zeros(INNER), START, None)
    certifier = Certifier(estimator, None, PROBLEM, Batches(None, None), None, state.scale)
    fine = Accuracy(jnp.asarray(1e-3), jnp.asarray(1e-3))
    rough = fine.scaled(2, 2)
    at = eqx.filter_jit(certifier.hypergradient)
    yes, no = jnp.asarray(True), jnp.asarray(False)
    none = Judgement.none(fine)
    assert not none.serves(fine, 0.5)
    first = at(state, START, fine, none, yes)
    assert first.judgement.serves(fine, 0.5)
    carried = first
    for age in range(1, CARRIED + 1):
        carried = at(carried.estimator_state, START, fine, carried.judgement, no)
        assert int(carried.judgement.age) == age
        assert carried.relative_error == first.relative_error
    assert not carried.judgement.serves(fine, 0.5)
    old = at(carried.estimator_state, START, fine, carried.judgement, yes)
    assert int(old.judgement.age) == 0
    assert int(old.calls) > int(carried.calls)
    rougher = at(first.estimator_state, START, rough, first.judgement, no)
    np.testing.assert_allclose(rougher.relative_error, 2 * first.relative_error, rtol=1e-6)
    assert first.judgement.serves(rough, 2.01 * first.relative_error)
    assert not first.judgement.serves(rough, 1.99 * first.relative_error)


def test_a_metric_with_a_set_that_couples_the_hyperparameters_is_refused():
    with pytest.raises(ValueError, match=r"MAID: with a metric .* received ScaledSimplex"):
        MAID(ESTIMATOR, CONSTANTS, metric=QuasiNewton(), constraint=ScaledSimplex())


def test_the_constants_are_checked():
    with pytest.raises(ValueError, match=r"strong_convexity: expected positive and finite, .* 0.0"):
        Smoothness(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"mixed: expected non-negative and finite, received nan"):
        Smoothness(1.0, float("nan"), 1.0)
    with pytest.raises(ValueError, match=r"expected `smoothness`.*received error_estimate=False"):
        MAID(ESTIMATOR)
    with pytest.raises(ValueError, match=r"eta: expected a number between 0 and 1, received 1.5"):
        MAID(ESTIMATOR, eta=1.5)
