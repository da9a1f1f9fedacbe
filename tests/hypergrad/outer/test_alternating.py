import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import Newton, OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import HOAG, Alternating, Batches, Box, Minibatches
from hypergrad.problem import BilevelProblem

EXACT = ImplicitDifferentiation(
    OptaxSolver(optax.sgd(0.3), steps=400), CG(tol=1e-12), error_estimate=False
)


def steps(ridge, algorithm, count, batches=None):
    batches = Batches(ridge.inner, ridge.outer) if batches is None else batches
    state = algorithm.init(ridge.problem, ridge.params, ridge.hparams, batches)
    step = eqx.filter_jit(algorithm.step)
    infos = []
    for _ in range(count):
        state, info = step(ridge.problem, state, batches)
        infos.append(info)
    return state, infos


def test_one_step_is_a_step_along_the_exact_hypergradient(ridge):
    state, (info,) = steps(ridge, Alternating(EXACT, optax.sgd(0.5)), 1)
    value, gradient = jax.value_and_grad(ridge.value)(ridge.hparams)
    np.testing.assert_allclose(info.value, value, rtol=1e-10)
    np.testing.assert_allclose(state.hypergradient, gradient, rtol=1e-8)
    np.testing.assert_allclose(state.hparams, -0.5 * gradient, rtol=1e-8)
    np.testing.assert_array_equal(state.visited, ridge.hparams)
    np.testing.assert_allclose(state.params, ridge.solution(ridge.hparams), rtol=1e-8)
    np.testing.assert_allclose(info.hypergradient_norm, np.linalg.norm(gradient), rtol=1e-8)
    assert int(info.calls) == 400 + 4 + 2


@pytest.mark.parametrize(
    "algorithm", [lambda e: Alternating(e, optax.sgd(0.5)), lambda e: HOAG(e, "exponential")]
)
def test_calls_count_the_error_estimate(ridge, algorithm):
    batches = Batches(ridge.inner, ridge.outer)
    with_error, without = (
        ImplicitDifferentiation(Newton(), CG(), error_estimate=on) for on in (True, False)
    )
    counted, bare = (
        steps(ridge, algorithm(estimator), 1)[1][0].calls for estimator in (with_error, without)
    )
    state = with_error.init(ridge.problem, ridge.params, ridge.hparams, batches.inner())
    state, _ = with_error.fit(ridge.problem, state, ridge.hparams, batches.inner())
    info = with_error.hypergradient(
        ridge.problem, state, ridge.hparams, batches.linear, batches.outer
    ).info
    assert info.error_calls > 0
    assert counted - bare == info.error_calls


def test_the_box_holds_and_defines_stationarity(ridge):
    algorithm = Alternating(EXACT, optax.adam(0.1), constraint=Box(-1.0, 1.0))
    state, infos = steps(ridge, algorithm, 120)
    assert jnp.all((state.hparams >= -1) & (state.hparams <= 1))
    assert jnp.any(jnp.abs(state.hparams) == 1)
    assert infos[-1].stationarity < 1e-3 < infos[-1].hypergradient_norm
    assert infos[-1].value < infos[0].value


def test_warm_and_cold_starts_agree_where_the_inner_solution_is_unique(ridge):
    ends = [
        steps(ridge, Alternating(EXACT, optax.adam(0.3), start=start), 5)[0].hparams
        for start in ("warm", "cold", 2)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-7)
    np.testing.assert_allclose(ends[0], ends[2], rtol=1e-7)


def test_a_cold_start_begins_at_the_first_params(ridge):
    one = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(0.1), steps=1), CG(max_steps=2), error_estimate=False
    )
    still = optax.sgd(0.0)
    distances = {}
    for start in ("warm", "cold", 2):
        state, _ = steps(ridge, Alternating(one, still, start=start), 3)
        distances[start] = float(jnp.linalg.norm(state.params))
    assert distances["warm"] > distances[2] * 1.5
    np.testing.assert_allclose(distances["cold"], distances[2])


def test_each_fit_gets_its_own_batch(ridge):
    seen = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(0.1), steps=1), CG(max_steps=2), error_estimate=False
    )
    sampler = Minibatches(6, policy="fresh", fits=3)
    batches = sampler(ridge.inner, ridge.outer, jnp.asarray(0), jax.random.key(0))
    state, (info,) = steps(ridge, Alternating(seen, optax.sgd(0.0), fits=3), 1, batches)
    w = ridge.params
    for fit in range(3):
        w = w - 0.1 * jax.grad(ridge.problem.inner)(w, ridge.hparams, batches.inner(fit))
    np.testing.assert_allclose(state.params, w, rtol=1e-12)
    assert int(info.inner_iterations) == 3


def test_a_chained_clip_bounds_the_step(ridge):
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state, _ = steps(ridge, Alternating(EXACT, clipped), 1)
    np.testing.assert_allclose(jnp.linalg.norm(state.hparams), 1e-3, rtol=1e-6)


def test_a_nan_moves_nothing(ridge):
    broken = {**ridge.outer, "y": ridge.outer["y"].at[0].set(jnp.nan)}
    batches = Batches(ridge.inner, broken)
    state, (info,) = steps(ridge, Alternating(EXACT, optax.adam(0.1)), 1, batches)
    np.testing.assert_array_equal(state.hparams, ridge.hparams)
    assert int(info.stop) == 3
    assert not info.accepted


def test_leaves_that_are_not_floating_point_are_carried():
    def inner(p, h, _):
        return jnp.sum((p["w"] - h["target"]) ** 2) * h["times"]

    problem = BilevelProblem(inner, lambda p, h, _: jnp.sum(p["act"](p["w"]) ** 2))
    algorithm = Alternating(EXACT, optax.sgd(0.1))
    params = {"w": jnp.ones(2), "act": jnp.sin}
    hparams = {"target": jnp.ones(2), "times": 2}
    batches = Batches(None, None)
    state = algorithm.init(problem, params, hparams, batches)
    state, info = eqx.filter_jit(algorithm.step)(problem, state, batches)
    expected = 1 - 0.1 * 2 * np.sin(1) * np.cos(1)
    np.testing.assert_allclose(state.hparams["target"], expected, rtol=1e-8)
    assert state.hparams["times"] == 2
    assert state.params["act"] is jnp.sin
    assert info.accepted


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="fits: expected at least 1, received 0"):
        Alternating(EXACT, optax.sgd(0.1), fits=0)
    with pytest.raises(ValueError, match="received 'lukewarm'"):
        Alternating(EXACT, optax.sgd(0.1), start="lukewarm")
