"""Persistent evolution strategies against the derivative of the whole run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem
from hypergrad.unrolled import PersistentEvolution, StepFunction, TruncatedUnrolled, Unrolled

CURVATURES = jnp.array([0.02, 0.1, 1.0])
START = jnp.array([1.0, -2.0, 0.5])


def loss(w, hparams, batch):
    """A quadratic with a slow direction, and a penalty."""
    return 0.5 * jnp.sum(CURVATURES * (w - batch) ** 2) + 0.5 * jnp.exp(hparams["penalty"]) * w @ w


def outer(w, hparams, batch):
    return jnp.sum((w - batch) ** 2) + 0.01 * hparams["rate"]


PROBLEM = BilevelProblem(loss, outer)
HPARAMS = {"rate": jnp.array(-1.0), "penalty": jnp.array(-3.0)}
BATCH = jnp.array([0.5, 1.0, -1.0])
WINDOW, WINDOWS, PAIRS = 5, 6, 4000


def sgd(hparams):
    return optax.sgd(jnp.exp(hparams["rate"]))


@pytest.fixture(scope="module")
def windows():
    """Hypergradients at the end of each window, hyperparameters fixed."""
    estimator = PersistentEvolution(sgd, WINDOW, pairs=PAIRS, sigma=0.01)
    state = estimator.init(PROBLEM, START, HPARAMS, BATCH)

    @jax.jit
    def window(state, key):
        state, _ = estimator.fit(PROBLEM, state, HPARAMS, BATCH, key=key)
        return state, estimator.hypergradient(PROBLEM, state, HPARAMS, BATCH, BATCH)

    found = []
    for key in jax.random.split(jax.random.key(0), WINDOWS):
        state, answer = window(state, key)
        found.append(answer)
    return found


def vector(grad):
    return np.array([grad["rate"], grad["penalty"]])


def test_it_is_unbiased_where_truncation_is_not(windows):
    steps = WINDOW * WINDOWS
    exact = Unrolled(sgd, steps)
    short = TruncatedUnrolled(sgd, steps, WINDOW)
    answers = [
        e.hypergradient(PROBLEM, e.init(PROBLEM, START, HPARAMS, BATCH), HPARAMS, BATCH, BATCH)
        for e in (exact, short)
    ]
    truth, cut = (vector(answer.grad) for answer in answers)
    last = windows[-1]
    error = float(last.info.error) * np.linalg.norm(vector(last.grad))
    assert np.linalg.norm(vector(last.grad) - truth) <= 3 * error
    assert np.linalg.norm(cut - truth) >= 10 * error
    np.testing.assert_allclose(last.value, answers[0].value, rtol=1e-12)
    np.testing.assert_allclose(last.state.params, answers[0].state.params, rtol=1e-12)


def test_the_error_that_it_states_is_as_large_as_those_it_makes(windows):
    found = windows[2]
    exact = Unrolled(sgd, 3 * WINDOW)
    state = exact.init(PROBLEM, START, HPARAMS, BATCH)
    truth = vector(exact.hypergradient(PROBLEM, state, HPARAMS, BATCH, BATCH).grad)
    off = np.linalg.norm(vector(found.grad) - truth)
    assert off <= 3 * float(found.info.error) * np.linalg.norm(vector(found.grad))


def test_runs_begin_again_at_the_horizon():
    estimator = PersistentEvolution(sgd, 5, horizon=10, pairs=2)
    state = estimator.init(PROBLEM, START, HPARAMS, BATCH)
    fit = jax.jit(lambda state, key: estimator.fit(PROBLEM, state, HPARAMS, BATCH, key=key)[0])
    seen = []
    for key in jax.random.split(jax.random.key(1), 4):
        state = fit(state, key)
        seen.append((int(state.steps), state.params, state.sums["rate"]))
    assert [steps for steps, *_ in seen] == [5, 10, 5, 10]
    np.testing.assert_array_equal(seen[0][1], seen[2][1])
    # The sum of one window's perturbations, not of three.
    assert float(jnp.abs(seen[2][2]).max()) < 4 * 0.01


LINEAR = BilevelProblem(lambda w, h, b: 0.5 * jnp.sum(w**2), lambda w, h, b: jnp.sum(w))


def decay(w, state, h, batch):
    """Reads the hyperparameters in no step but through the state of its start."""
    return 0.9 * w + state, state


@pytest.mark.parametrize(
    ("update", "initial"),
    [
        (StepFunction(decay, lambda w, h: jnp.asarray(0.0)), lambda w, h: w * h),
        (StepFunction(decay, lambda w, h: h), None),
    ],
    ids=["initial", "state"],
)
@pytest.mark.parametrize("horizon", [None, 4])
def test_what_acts_through_the_start_is_in_the_derivative(update, initial, horizon):
    """The end is linear in the hyperparameter, so that smoothing changes nothing."""
    estimator = PersistentEvolution(update, 2, horizon=horizon, pairs=1000, initial=initial)
    state, h = estimator.init(LINEAR, START, jnp.asarray(0.7), BATCH), jnp.asarray(0.7)
    fit = jax.jit(lambda state, key: estimator.fit(LINEAR, state, h, BATCH, key=key)[0])
    # With a horizon these are the second window of the second runs.
    for key in jax.random.split(jax.random.key(2), 2 if horizon is None else 4):
        state = fit(state, key)
    found = estimator.hypergradient(LINEAR, state, h, BATCH, BATCH)
    steps = 4
    by_start = jnp.sum(START) * 0.9**steps
    by_state = 3 * (1 - 0.9**steps) / (1 - 0.9)
    truth = by_start if initial is not None else by_state
    error = float(found.info.error) * abs(float(found.grad))
    assert error < 0.1 * abs(truth)
    assert abs(float(found.grad) - truth) <= 3 * error


@pytest.mark.parametrize("at", [3.0, 10.0])
def test_rounding_of_hyperparameters_makes_no_bias(at):
    """At 3 the spacing of bfloat16 is larger than `sigma`, at 10 six times as large."""
    step = StepFunction(lambda w, s, h, b: (w + h.astype(w.dtype), s))
    estimator = PersistentEvolution(step, 1, pairs=20_000)
    h = jnp.asarray(at, jnp.bfloat16)
    state = estimator.init(LINEAR, START, h, BATCH)
    state, _ = estimator.fit(LINEAR, state, h, BATCH, key=jax.random.key(3))
    found = estimator.hypergradient(LINEAR, state, h, BATCH, BATCH)
    # The answer itself is rounded to three digits.
    assert float(found.info.error) < 0.02
    assert float(found.grad) == pytest.approx(3, rel=3 * float(found.info.error) + 2**-8)


def test_what_is_refused():
    with pytest.raises(ValueError, match="horizon: expected a multiple of steps=5"):
        PersistentEvolution(sgd, 5, horizon=12)
    with pytest.raises(ValueError, match="sigma: expected a positive number"):
        PersistentEvolution(sgd, 5, sigma=0.0)
    for wrong in (float("inf"), True, "a", None):
        with pytest.raises(ValueError, match="sigma: expected a"):
            PersistentEvolution(sgd, 5, sigma=wrong)
    with pytest.raises(ValueError, match="nothing to differentiate: hparams: expected at least"):
        PersistentEvolution(optax.sgd(0.1), 5).init(PROBLEM, START, {}, BATCH)
    estimator = PersistentEvolution(sgd, 5, pairs=1)
    state = estimator.init(PROBLEM, START, HPARAMS, BATCH)
    with pytest.raises(ValueError, match="key: expected a key"):
        estimator.fit(PROBLEM, state, HPARAMS, BATCH)
    state, _ = estimator.fit(PROBLEM, state, HPARAMS, BATCH, key=jax.random.key(0))
    answer = estimator.hypergradient(PROBLEM, state, HPARAMS, BATCH, BATCH)
    assert eqx.tree_equal(answer.state, state)
    assert answer.info.error == jnp.inf
