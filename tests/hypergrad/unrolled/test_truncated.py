"""Truncated and online estimates: what they drop, and what they say about it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, hypergradient
from hypergrad.unrolled import (
    ForwardUnrolled,
    OnlineUnrolled,
    TruncatedUnrolled,
    Unrolled,
)
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, logistic, relative_error
from tests.hypergrad.unrolled.runs import PROBLEM, STEPS, case, initial, optimizer, plain

PARAMS, HPARAMS, INNER, OUTER = case()
BY_STEP = {k: v for k, v in HPARAMS.items() if k not in ("gain", "start")}


def test_the_window_is_what_reverse_mode_gives_from_its_edge():
    window = 5
    cut = STEPS - window
    estimator = TruncatedUnrolled(optimizer, STEPS, window, stacked=True)
    out = hypergradient(PROBLEM, PARAMS, BY_STEP, INNER, OUTER, estimator=estimator)

    def after_the_edge(h):
        return plain(h, PARAMS, INNER, OUTER, first=cut, before=BY_STEP)

    value, grad = jax.jit(jax.value_and_grad(after_the_edge))(BY_STEP)
    assert relative_error(out.grad, grad) < 1e-12
    np.testing.assert_allclose(out.value, value, rtol=1e-13)
    assert jnp.all(out.grad["rate"][:cut] == 0)
    assert out.info.iterations == window
    assert out.info.inner_iterations == STEPS


@pytest.mark.parametrize("window", [1, 2, 6])
def test_at_a_solution_it_is_the_neumann_series(window):
    golden = {1: 0.03137394137585697, 2: 0.05205283314406326, 6: 0.08178696689793584}
    lam = jnp.asarray(-1.0)
    estimator = TruncatedUnrolled(optax.sgd(0.4), 400, window)
    out = hypergradient(RIDGE, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=estimator)
    assert out.grad == pytest.approx(golden[window], rel=1e-12)
    # On this problem the whole unroll is the implicit derivative.
    true = abs(0.08721369186448863 / golden[window] - 1)
    assert true < float(out.info.error) < 10 * true


def test_the_bias_is_estimated_within_a_factor_on_logistic_regression():
    problem, w, lam, train, valid = logistic()
    steps = 150
    update = optax.sgd(0.5, momentum=0.5)
    exact = hypergradient(problem, w, lam, train, valid, estimator=Unrolled(update, steps))
    ratios = []
    for window in (1, 2, 5, 10, 20, 40):
        out = hypergradient(
            problem, w, lam, train, valid, estimator=TruncatedUnrolled(update, steps, window)
        )
        size = jnp.linalg.norm(out.grad)
        true = float(jnp.linalg.norm(out.grad - exact.grad) / size)
        ratios.append(float(out.info.error) / true)
    assert min(ratios) >= 1
    assert np.median(ratios) < 30


def test_a_short_window_on_a_learning_rate_is_marked_unusable():
    # Each of 200 steps contributes alike: one of them stands for half a percent.
    problem = BilevelProblem(lambda w, h, b: RIDGE.inner(w, -1.0, b), RIDGE.outer)
    h = {"lr": jnp.asarray(0.01)}
    out = hypergradient(
        problem,
        jnp.zeros(2),
        h,
        (X, Y),
        (XV, YV),
        estimator=TruncatedUnrolled(lambda h: optax.sgd(h["lr"]), 200, 2),
    )
    assert out.info.error > 1


def test_a_window_over_the_whole_run_drops_nothing():
    whole = TruncatedUnrolled(optimizer, STEPS, STEPS, stacked=True)
    out = hypergradient(PROBLEM, PARAMS, BY_STEP, INNER, OUTER, estimator=whole)
    assert out.info.error < 1e-13
    exact = jax.jit(jax.grad(plain))(BY_STEP, PARAMS, INNER, OUTER)
    assert relative_error(out.grad, exact) < 1e-12


def test_a_hyperparameter_of_the_start_is_refused_by_name():
    estimator = TruncatedUnrolled(optimizer, STEPS, 3, initial=initial, stacked=True)
    with pytest.raises(ValueError, match=r"'gain', 'start/in/0', .*through the start only"):
        hypergradient(PROBLEM, PARAMS, HPARAMS, INNER, OUTER, estimator=estimator)


def test_online_is_forward_mode_over_all_windows_until_the_hyperparameters_move():
    h = {k: v for k, v in HPARAMS.items() if k != "start"}
    h["rate"] = jnp.asarray(0.2)

    def constant(h):
        return optax.chain(
            optax.add_decayed_weights(h["decay"]),
            optax.trace(h["momentum"]),
            optax.scale_by_learning_rate(h["rate"]),
        )

    def scaled(p, h):
        return jax.tree.map(lambda a: h["gain"] * a, p)

    batch = jax.tree.map(lambda a: a[0], INNER)
    online = OnlineUnrolled(constant, 4, initial=scaled)
    state = online.init(PROBLEM, PARAMS, h, batch)
    for _ in range(3):
        state, info = online.fit(PROBLEM, state, h, batch)
    out = online.hypergradient(PROBLEM, state, h, batch, OUTER)
    whole = hypergradient(
        PROBLEM, PARAMS, h, batch, OUTER, estimator=ForwardUnrolled(constant, 12, initial=scaled)
    )
    assert relative_error(out.grad, whole.grad) < 1e-12
    assert out.value == pytest.approx(float(whole.value), rel=1e-12)
    assert info.iterations == 4
    assert out.info.iterations == 12
    assert out.info.error < 1e-11
    moved = {**h, "momentum": h["momentum"] + 0.01}
    state, _ = online.fit(PROBLEM, state, moved, batch)
    assert jnp.isnan(online.hypergradient(PROBLEM, state, moved, batch, OUTER).info.error)
    # The mark stays after a return to the first values.
    state, _ = online.fit(PROBLEM, state, h, batch)
    assert jnp.isnan(online.hypergradient(PROBLEM, state, h, batch, OUTER).info.error)


def test_online_tunes_a_learning_rate_while_it_trains():
    problem = BilevelProblem(lambda w, h, b: RIDGE.inner(w, -1.0, b), RIDGE.outer)
    online = OnlineUnrolled(lambda h: optax.sgd(jnp.exp(h)), 5)
    log_rate = jnp.log(jnp.asarray(0.01))
    state = online.init(problem, jnp.zeros(2), log_rate, (X, Y))

    def outer_step(carry, _):
        state, log_rate = carry
        state, _ = online.fit(problem, state, log_rate, (X, Y))
        out = online.hypergradient(problem, state, log_rate, (X, Y), (XV, YV))
        return (state, log_rate - 0.5 * out.grad), out.value

    (_, tuned), values = jax.jit(lambda s, h: jax.lax.scan(outer_step, (s, h), length=20))(
        state, log_rate
    )
    fixed = hypergradient(
        problem,
        jnp.zeros(2),
        log_rate,
        (X, Y),
        (XV, YV),
        estimator=Unrolled(lambda h: optax.sgd(jnp.exp(h)), 100),
    )
    assert tuned > log_rate + 0.5
    assert values[-1] < 0.5 * fixed.value
