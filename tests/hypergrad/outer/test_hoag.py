import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import FunctionSolver, Newton, OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import HOAG, Alternating, Batches, Box, QuasiNewton, ScaledSimplex
from hypergrad.outer.hoag import SCHEDULES
from hypergrad.problem import BilevelProblem

DESCENT = ImplicitDifferentiation(
    OptaxSolver(optax.sgd(0.2, momentum=0.8, nesterov=True), steps=5000),
    CG(),
    error_estimate=False,
)
BOX = Box(-3.0, 1.0)


def trace(ridge, algorithm, count, problem=None):
    problem = ridge.problem if problem is None else problem
    batches = Batches(ridge.inner, ridge.outer)
    state = algorithm.init(problem, ridge.params, ridge.hparams, batches)
    step = eqx.filter_jit(algorithm.step)
    states, infos = [], []
    for _ in range(count):
        state, info = step(problem, state, batches)
        states.append(state)
        infos.append(info)
    return states, infos


@pytest.fixture(scope="module")
def adaptive(ridge):
    return trace(ridge, HOAG(DESCENT, constraint=BOX), 60)


def test_it_converges_to_a_stationary_point(ridge, adaptive):
    states, infos = adaptive
    visited = states[-1].visited
    gradient = jax.grad(ridge.value)(visited)
    np.testing.assert_allclose(BOX.project(visited - gradient), visited, atol=1e-3)
    np.testing.assert_allclose(infos[-1].value, ridge.value(visited), rtol=1e-4)
    assert float(infos[-1].value) < float(ridge.value(ridge.hparams)) - 0.01


def test_early_steps_are_cheap_and_later_ones_exact(adaptive):
    _, infos = adaptive
    spent = [int(info.inner_iterations) for info in infos]
    assert 3 * sum(spent[:5]) < 2 * sum(spent[-5:])
    assert float(infos[-1].tolerance) < 1e-2 * float(infos[0].tolerance)


def test_the_kept_point_belongs_together(ridge, adaptive):
    states, infos = adaptive
    for state, info in zip(states, infos, strict=True):
        at = ridge.problem.outer(state.params, state.visited, ridge.outer)
        np.testing.assert_allclose(info.value, at, rtol=1e-12)
    levels = [float(state.level) for state in states]
    allowed = [float(state.slack) for state in states]
    judged = list(zip(levels, allowed, strict=True))
    for (last, slack), (now, more) in itertools.pairwise(judged):
        assert now <= last + slack + more + 1e-12


def test_steps_are_judged_by_losses_closer_to_the_truth_than_the_solves(ridge, adaptive):
    states, infos = adaptive
    true = np.array([float(ridge.value(state.visited)) for state in states])
    off = np.abs(np.array([float(info.value) for info in infos]) - true)
    judged = np.abs(np.array([float(state.level) for state in states]) - true)
    # After the first steps, whose solves are too rough for a first-order correction.
    rough = (np.arange(len(off)) >= 3) & (off > 1e-10)
    assert rough.sum() >= 10
    assert np.median(judged[rough] / off[rough]) < 0.2


def test_a_lucky_rough_start_does_not_hold_the_search_up(ridge):
    # Inner steps too few for the loss to be what it seems: the first level is out of reach.
    states, _ = trace(ridge, HOAG(DESCENT, constraint=BOX), 1)
    fooled = eqx.tree_at(lambda s: s.level, states[0], states[0].level - 1.0)
    batches = Batches(ridge.inner, ridge.outer)
    algorithm = HOAG(DESCENT, constraint=BOX)
    step, accepted = eqx.filter_jit(algorithm.step), []
    for _ in range(40):
        fooled, info = step(ridge.problem, fooled, batches)
        accepted.append(bool(info.accepted))
    assert not accepted[0]
    assert any(accepted)
    assert float(ridge.value(fooled.visited)) < float(ridge.value(states[0].visited))


def test_a_metric_with_a_set_that_couples_the_hyperparameters_is_refused():
    with pytest.raises(ValueError, match=r"holds entry by entry \(Box\), received ScaledSimplex"):
        HOAG(DESCENT, metric=QuasiNewton(), constraint={"weights": ScaledSimplex(), "l2": None})


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_named_schedules(name):
    k = jnp.arange(4.0)
    expected = {
        "quadratic": [0.1, 0.1 / 4, 0.1 / 9, 0.1 / 16],
        "cubic": [0.1, 0.1 / 8, 0.1 / 27, 0.1 / 64],
        "exponential": [0.1, 0.09, 0.081, 0.0729],
    }[name]
    np.testing.assert_allclose(SCHEDULES[name](k), expected)


def test_the_tolerance_asked_for_is_met(ridge):
    def schedule(step):
        return 1e-3 / (step + 1)

    _, infos = trace(ridge, HOAG(DESCENT, schedule, constraint=BOX), 6)
    for k, info in enumerate(infos):
        assert float(info.tolerance) <= 1e-3 / (k + 1) * (1 + 1e-12)
        assert float(info.inner_residual) <= float(info.tolerance)


def test_a_step_that_is_too_long_goes_back_to_the_point_before(ridge):
    algorithm = HOAG(
        ImplicitDifferentiation(Newton(), CG(), error_estimate=False),
        lambda k: 1e-9,
        step_size=3e3,
        constraint=BOX,
    )
    states, infos = trace(ridge, algorithm, 12)
    assert bool(infos[0].accepted)
    rejected = [i for i, info in enumerate(infos) if not info.accepted]
    assert rejected
    for i in rejected:
        np.testing.assert_array_equal(states[i].visited, states[i - 1].visited)
        np.testing.assert_array_equal(states[i].params, states[i - 1].params)
        np.testing.assert_allclose(states[i].lipschitz, 2 * states[i - 1].lipschitz)
        expected = BOX.project(states[i].visited - states[i].hypergradient / states[i].lipschitz)
        np.testing.assert_allclose(states[i].hparams, expected)
    assert float(infos[-1].value) < float(infos[0].value)


def test_the_direct_term_counts(ridge):
    def outer(w, hparams, batch):
        return ridge.problem.outer(w, hparams, batch) + 0.05 * jnp.sum((hparams - 1) ** 2)

    problem = BilevelProblem(ridge.problem.inner, outer)
    exact = ImplicitDifferentiation(Newton(), CG(tol=1e-12), error_estimate=False)
    states, _ = trace(ridge, HOAG(exact, lambda k: 1e-12), 1, problem)
    expected = jax.grad(lambda h: outer(ridge.solution(h), h, ridge.outer))(ridge.hparams)
    np.testing.assert_allclose(states[0].hypergradient, expected, rtol=1e-8)
    first = 1 / float(states[0].lipschitz)
    np.testing.assert_allclose(first * jnp.linalg.norm(expected), np.sqrt(4), rtol=1e-8)


def test_what_has_no_tolerance_is_refused(ridge):
    function = ImplicitDifferentiation(FunctionSolver(lambda w, h, b: w), CG())
    with pytest.raises(ValueError, match=r"HOAG chooses the accuracy of the estimator's solver"):
        HOAG(function)
    with pytest.raises(ValueError, match=r"an ImplicitDifferentiation such .* an Alternating"):
        HOAG(Alternating(DESCENT, optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r"tolerance: expected one of .* received 'linear'"):
        HOAG(DESCENT, "linear")


def test_hyperparameters_without_effect_are_named(ridge):
    problem = BilevelProblem(
        lambda w, h, b: ridge.problem.inner(w, h["l2"], b),
        lambda w, h, b: ridge.problem.outer(w, h["l2"], b),
    )
    hparams = {"l2": ridge.hparams, "rate": jnp.asarray(0.1)}
    batches = Batches(ridge.inner, ridge.outer)
    with pytest.raises(ValueError, match=r"HOAG cannot see hyperparameter 'rate'"):
        HOAG(DESCENT).init(problem, ridge.params, hparams, batches)
