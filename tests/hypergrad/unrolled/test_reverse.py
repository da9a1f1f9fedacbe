"""Reverse mode: exact for what was run, whatever is stored."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from hypergrad import BilevelProblem, hypergradient
from hypergrad.unrolled import ForwardUnrolled, StepFunction, Unrolled
from hypergrad.unrolled import reverse as reverse_module
from hypergrad.unrolled.checkpointing import schedule
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse, relative_error
from tests.hypergrad.unrolled.runs import PROBLEM, STEPS, case, initial, optimizer, plain

PARAMS, HPARAMS, INNER, OUTER = case()


def unrolled(kind=Unrolled, **options):
    return kind(optimizer, STEPS, initial=initial, stacked=True, **options)


@pytest.fixture(scope="module")
def truth():
    return jax.jit(jax.value_and_grad(plain))(HPARAMS, PARAMS, INNER, OUTER)


def test_every_hyperparameter_of_a_run_against_autodiff_of_a_plain_scan(truth):
    out = hypergradient(PROBLEM, PARAMS, HPARAMS, INNER, OUTER, estimator=unrolled())
    value, grad = truth
    assert out.value == pytest.approx(float(value), rel=1e-13)
    for name in HPARAMS:
        assert relative_error(out.grad[name], grad[name]) < 1e-12
    assert out.info.error < 1e-13
    assert out.info.iterations == STEPS
    assert not out.info.breakdown


def test_every_hyperparameter_of_a_run_against_finite_differences():
    out = hypergradient(PROBLEM, PARAMS, HPARAMS, INNER, OUTER, estimator=unrolled())
    flat, unravel = ravel_pytree(HPARAMS)
    value = jax.jit(lambda h: plain(unravel(h), PARAMS, INNER, OUTER))
    rng = np.random.default_rng(0)
    for name in HPARAMS:
        part = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), HPARAMS[name])
        zero = jax.tree.map(jnp.zeros_like, HPARAMS)
        direction = ravel_pytree({**zero, name: part})[0]
        direction /= jnp.linalg.norm(direction)
        step = 1e-4
        fourth_order = (
            8 * (value(flat + step * direction) - value(flat - step * direction))
            - (value(flat + 2 * step * direction) - value(flat - 2 * step * direction))
        ) / (12 * step)
        slope = ravel_pytree(out.grad)[0] @ direction
        assert abs(fourth_order - slope) < 1e-9 * max(abs(float(slope)), 1e-2)


@pytest.mark.parametrize(("memory", "offload"), [(3_500, True), (6_000, False)])
def test_checkpoints_do_not_change_the_derivative(truth, memory, offload):
    estimator = unrolled(memory=memory, offload=offload)
    chosen = estimator.plan(PROBLEM, PARAMS, HPARAMS, INNER)
    assert chosen.bytes <= memory
    assert chosen.blocks > 1
    out = hypergradient(PROBLEM, PARAMS, HPARAMS, INNER, OUTER, estimator=estimator)
    assert relative_error(out.grad, truth[1]) < 1e-12
    assert out.value == pytest.approx(float(truth[0]), rel=1e-13)


def test_offloaded_states_go_to_the_host_and_come_back():
    """Lowered for an accelerator, which need not be here."""

    def gradient(params, hparams):
        estimator = unrolled(memory=3_500, offload=True)
        state = estimator.init(PROBLEM, params, hparams, INNER)
        return estimator.hypergradient(PROBLEM, state, hparams, INNER, OUTER).grad

    traced = jax.jit(gradient).trace(PARAMS, HPARAMS)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    there = text.count("annotate_device_placement")
    assert there > text.count("pinned_host") > 0  # Some are marked to come back.


def test_forward_mode_agrees(truth):
    out = hypergradient(PROBLEM, PARAMS, HPARAMS, INNER, OUTER, estimator=unrolled(ForwardUnrolled))
    assert relative_error(out.grad, truth[1]) < 1e-12
    assert out.value == pytest.approx(float(truth[0]), rel=1e-13)
    assert out.info.error < 1e-12


@pytest.mark.parametrize("kind", [Unrolled, ForwardUnrolled])
def test_golden_heavy_ball(kind):
    def heavy_ball(h):
        return optax.sgd(h["lr"], momentum=h["mom"])

    problem = BilevelProblem(lambda w, h, b: RIDGE.inner(w, -1.0, b), half_mse)
    h = {"lr": jnp.asarray(0.3), "mom": jnp.asarray(0.5)}
    out = hypergradient(problem, jnp.zeros(2), h, (X, Y), (XV, YV), estimator=kind(heavy_ball, 3))
    assert out.value == pytest.approx(0.2511310774471928, rel=1e-13)
    np.testing.assert_allclose(out.state.params, [0.74970477, 1.22227504], atol=5e-9)
    assert out.grad["lr"] == pytest.approx(0.14361494, abs=5e-9)
    assert out.grad["mom"] == pytest.approx(0.84056579, abs=5e-9)


@pytest.mark.parametrize(
    ("steps", "golden"),
    [
        (1, 0.03137394137585697),
        (2, 0.05205283314406326),
        (3, 0.06515817275682391),
        (6, 0.08178696689793584),
        (21, 0.08720880654680016),
    ],
)
def test_from_a_solution_it_is_the_neumann_series(steps, golden):
    lam = jnp.asarray(-1.0)
    hessian = X.T @ X / 3 + jnp.exp(lam) * jnp.eye(2)
    solution = jnp.linalg.solve(hessian, X.T @ Y / 3)
    estimator = Unrolled(optax.sgd(0.4), steps)
    out = hypergradient(RIDGE, solution, lam, (X, Y), (XV, YV), estimator=estimator)
    assert out.grad == pytest.approx(golden, rel=1e-13)
    assert out.info.inner_residual < 1e-14


def test_float32_error_estimate_covers_the_rounding(truth):
    out = hypergradient(PROBLEM, *case(jnp.float32), estimator=unrolled(memory=2_000))
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(out.grad))
    error = relative_error(out.grad, truth[1])
    assert 0 < error < float(out.info.error) < 1e-4


def test_low_precision_hyperparameters_add_up_in_float32():
    # 4096 contributions of one size: in bfloat16 the sum stops growing at 256 of them.
    problem = BilevelProblem(lambda w, h, b: -h["slope"].astype(jnp.float32) * w, lambda w, h, b: w)
    out = hypergradient(
        problem,
        jnp.zeros((), jnp.float32),
        {"slope": jnp.asarray(1.0, jnp.bfloat16)},
        estimator=Unrolled(optax.sgd(1.0), 4096),
    )
    assert out.grad["slope"].dtype == jnp.bfloat16
    assert out.grad["slope"] == 4096


@pytest.mark.slow
def test_second_derivatives_by_forward_over_reverse():
    def value(h):
        return plain(h, PARAMS, INNER, OUTER)

    def gradient(rate, memory):
        h = {**HPARAMS, "rate": rate}
        estimator = unrolled(memory=memory)
        state = estimator.init(PROBLEM, PARAMS, h, INNER)
        return estimator.hypergradient(PROBLEM, state, h, INNER, OUTER).grad["rate"]

    rate = HPARAMS["rate"]
    along = jnp.cos(jnp.arange(STEPS))
    got = jax.jit(lambda r: jax.jvp(lambda r: gradient(r, 3_500), (r,), (along,))[1])(rate)
    want = jax.jvp(jax.grad(lambda r: value({**HPARAMS, "rate": r})), (rate,), (along,))[1]
    assert relative_error(got, want) < 1e-11


def test_memory_grows_like_the_slots_and_not_like_the_steps():
    def temporary_bytes(steps, memory):
        rng = np.random.default_rng(0)
        params = jnp.asarray(rng.normal(size=(64, 32)) / 8)
        x, y = jnp.asarray(rng.normal(size=(20, 64))), jnp.asarray(rng.normal(size=(20, 32)))
        problem = BilevelProblem(
            lambda w, h, b: jnp.mean((jnp.tanh(b[0] @ w) - b[1]) ** 2),
            lambda w, h, b: jnp.mean((jnp.tanh(b[0] @ w) - b[1]) ** 2),
        )
        estimator = Unrolled(lambda h: optax.sgd(h["lr"], momentum=h["mom"]), steps, memory=memory)
        h = {"lr": jnp.asarray(0.1), "mom": jnp.asarray(0.9)}
        state = estimator.init(problem, params, h, (x, y))

        def gradient(state, h, batch):
            return estimator.hypergradient(problem, state, h, batch, batch).grad

        compiled = jax.jit(gradient).lower(state, h, (x, y)).compile()
        return compiled.memory_analysis().temp_size_in_bytes, estimator.plan(
            problem, params, h, (x, y)
        )

    stored, whole = temporary_bytes(256, 10**9)
    small, few = temporary_bytes(256, 600_000)
    assert whole.blocks == 1
    assert small < 0.05 * stored
    assert few.advances < 2.5 * 256
    for measured, chosen in ((stored, whole), (small, few)):
        assert 0.7 * chosen.bytes < measured < 1.3 * chosen.bytes


def test_new_values_never_trace_again():
    traces = []

    def counted(p, h, batch):
        traces.append(1)
        return PROBLEM.inner(p, h, batch)

    problem = BilevelProblem(counted, PROBLEM.outer)
    estimator = unrolled()
    hypergradient(problem, PARAMS, HPARAMS, INNER, OUTER, estimator=estimator)
    before = len(traces)
    again = jax.tree.map(lambda a: 1.1 * a, (PARAMS, HPARAMS, INNER, OUTER))
    hypergradient(problem, *again, estimator=estimator)
    assert len(traces) == before


def test_vmap_over_hyperparameters(truth):
    estimator = unrolled(memory=3_500)
    state = estimator.init(PROBLEM, PARAMS, HPARAMS, INNER)

    def gradient(momentum):
        h = {**HPARAMS, "momentum": momentum}
        return estimator.hypergradient(PROBLEM, state, h, INNER, OUTER).grad

    values = HPARAMS["momentum"] + jnp.array([-0.4, 0.0, 0.3])
    grads = jax.jit(jax.vmap(gradient))(values)
    assert relative_error(jax.tree.map(lambda a: a[1], grads), truth[1]) < 1e-12
    assert relative_error(jax.tree.map(lambda a: a[2], grads), truth[1]) > 1e-2


def test_keys_are_those_of_the_step_wherever_it_is_run_again(key):
    def noisy(p, h, batch, key):
        return jnp.sum((p - h + jax.random.normal(key, p.shape)) ** 2)

    problem = BilevelProblem(noisy, lambda p, h, b, k: jnp.sum(jnp.sin(p)), stochastic=True)
    p, h = jnp.zeros(3), jnp.array([0.3, 0.1, 0.2])
    few, many = (
        hypergradient(problem, p, h, estimator=Unrolled(optax.adam(0.1), 9, memory=m), key=key)
        for m in (750, None)
    )
    w, opt = p, optax.adam(0.1)
    state = opt.init(w)
    for t in range(9):
        updates, state = opt.update(
            jax.grad(noisy)(w, h, None, jax.random.fold_in(key, t)), state, w
        )
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(few.state.params, w, rtol=1e-12)
    np.testing.assert_allclose(few.grad, many.grad, rtol=1e-12)
    with pytest.raises(ValueError, match="stochastic"):
        hypergradient(problem, p, h, estimator=Unrolled(optax.adam(0.1), 9))


def test_a_step_of_ones_own_with_state_and_noise(key):
    def projected(w, count, h, batch, key):
        noise = h["noise"] * jax.random.normal(key, w.shape)
        w = w - h["lr"] / (1.0 + count) * (2 * (w - batch) + noise)
        return jnp.clip(w, 0.0, 1.0), count + 1

    step = StepFunction(projected, lambda w, h: jnp.asarray(0.0), stochastic=True)
    problem = BilevelProblem(
        lambda w, h, b: jnp.sum((w - b) ** 2), lambda w, h, b: jnp.sum((w - 0.2) ** 2)
    )
    h = {"lr": jnp.asarray(0.1), "noise": jnp.asarray(0.3)}
    w, batch = jnp.array([0.5, 0.9]), jnp.array([0.4, 3.0])
    out = hypergradient(problem, w, h, batch, estimator=Unrolled(step, 5), key=key)

    def run(h):
        p, c = w, jnp.asarray(0.0)
        for t in range(5):
            p, c = projected(p, c, h, batch, jax.random.fold_in(key, t))
        return jnp.sum((p - 0.2) ** 2)

    truth = jax.grad(run)(h)
    assert relative_error(out.grad, truth) < 1e-12
    assert out.state.params[1] == 1.0


def test_a_line_search_in_forward_mode():
    problem = BilevelProblem(lambda w, h, b: RIDGE.inner(w, h, b), half_mse)
    lam = jnp.asarray(-1.0)
    out = hypergradient(
        problem, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=ForwardUnrolled(optax.lbfgs(), 12)
    )
    assert out.grad == pytest.approx(0.08721369186448863, rel=1e-7)
    assert out.info.error < 1e-6


def test_cold_and_warm_starts():
    batch = jax.tree.map(lambda a: a[0], INNER)
    h = {k: v for k, v in HPARAMS.items() if k not in ("gain", "start")}
    cold = Unrolled(optimizer, STEPS)
    state, info = cold.fit(PROBLEM, cold.init(PROBLEM, PARAMS, h, batch), h, batch)
    assert info.iterations == STEPS
    first = cold.hypergradient(PROBLEM, state, h, batch, OUTER)
    np.testing.assert_array_equal(first.state.params["out"], state.params["out"])
    again, _ = cold.fit(PROBLEM, first.state, h, batch)
    np.testing.assert_array_equal(again.params["out"], state.params["out"])

    warm = Unrolled(optimizer, STEPS, warm_start=True)
    begun = warm.init(PROBLEM, PARAMS, h, batch)
    one, _ = warm.fit(PROBLEM, begun, h, batch)
    np.testing.assert_allclose(one.params["out"], state.params["out"], rtol=1e-12)
    two, info = warm.fit(PROBLEM, one, h, batch)
    out = warm.hypergradient(PROBLEM, two, h, batch, OUTER)
    np.testing.assert_array_equal(two.start["out"], one.params["out"])
    np.testing.assert_allclose(out.state.params["out"], two.params["out"], rtol=1e-12)
    np.testing.assert_allclose(out.info.inner_residual, info.residual, rtol=1e-10)
    # The schedule's own counter went on, beyond the table: its last entry has all the gradient.
    assert jnp.all(out.grad["rate"][:-1] == 0)
    assert out.grad["rate"][-1] != 0


def test_not_a_number_is_contained():
    # Adam's square root has an infinite derivative where a parameter never had a gradient.
    problem = BilevelProblem(lambda w, h, b: (w[0] - h) ** 2, lambda w, h, b: jnp.sum((w - 1) ** 2))
    w, h = jnp.array([2.0, 0.0]), jnp.asarray(0.7)
    bad = Unrolled(optax.adam(0.1), 6)
    state = bad.init(problem, w, h, None)
    out = bad.hypergradient(problem, state, h, None, None)
    assert jnp.isfinite(out.grad)
    assert out.info.breakdown
    assert out.info.error == jnp.inf
    good = Unrolled(optax.adam(0.1, eps_root=1e-12), 6)
    out = good.hypergradient(problem, state, h, None, None)
    assert not out.info.breakdown
    assert out.info.error < 1e-10


def test_what_comes_after_a_bad_step_is_kept(monkeypatch):
    # Blocks of one step, which a run as small as this would not choose.
    single = schedule(10, 16, 1000, 1100)
    assert single.block == 1
    monkeypatch.setattr(reverse_module, "schedule", lambda *_: single)

    # Step 3 has the derivative of sqrt at zero; steps 4 to 9 have contributed by then.
    def fn(w, t, h, batch):
        bad = jax.lax.cond(t == 3, lambda h: jnp.sqrt(0.0 * h), lambda h: 0.0 * h, h)
        return 0.5 * w + h + bad, t + 1

    estimator = Unrolled(StepFunction(fn, lambda w, h: jnp.asarray(0)), 10)
    problem = BilevelProblem(lambda w, h, b: w**2, lambda w, h, b: w)
    state = estimator.init(problem, jnp.asarray(1.0), jnp.asarray(1.0), None)
    out = estimator.hypergradient(problem, state, jnp.asarray(1.0), None, None)
    assert out.info.breakdown
    assert out.info.error == jnp.inf
    assert out.info.iterations == 6
    assert out.grad == pytest.approx(sum(0.5**j for j in range(6)))


def test_a_run_that_diverges_says_so():
    problem = BilevelProblem(lambda w, h, b: h * jnp.sum(w**4), lambda w, h, b: jnp.sum(w))
    estimator = Unrolled(optax.sgd(10.0), 30)
    state = estimator.init(problem, jnp.ones(2), jnp.asarray(1.0), None)
    out = eqx.filter_jit(estimator.hypergradient)(problem, state, jnp.asarray(1.0), None, None)
    assert not jnp.isfinite(out.value)
    assert out.grad == 0
    assert out.info.breakdown
    assert out.info.error == jnp.inf
    assert out.info.iterations == 0


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64")])
def test_parameters_and_hyperparameters_of_different_dtypes(dtypes):
    problem = BilevelProblem(
        lambda w, lam, b: jnp.sum((w - b) ** 2) + jnp.exp(lam) * jnp.sum(w**2),
        lambda w, lam, b: jnp.sum((w - b) ** 2),
    )
    w, lam = (jnp.full(size, 0.5, dtype) for size, dtype in zip(((2,), ()), dtypes, strict=True))
    out = hypergradient(problem, w, lam, 1.0, 1.0, estimator=Unrolled(optax.sgd(0.1), steps=1))
    rate = 2 * 0.1
    moved = 0.5 - rate * (0.5 - 1 + np.exp(0.5) * 0.5)
    expected = 2 * 2 * (moved - 1) * -rate * np.exp(0.5) * 0.5
    np.testing.assert_allclose(float(out.grad), expected, rtol=1e-6)
    assert out.grad.dtype == dtypes[1]
