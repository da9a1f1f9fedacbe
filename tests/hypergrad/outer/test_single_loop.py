import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.outer import F2SA, SABA, SOBA, Batches, Box, Minibatches
from hypergrad.outer.saba import empty_memory, refresh
from hypergrad.outer.single_loop import inner_terms, into_ball, outer_terms
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem

BOX = Box(-3.0, 1.0)


def scan(ridge, algorithm, count, sampler=None):
    """The last state, and the infos, of one compiled loop."""
    key = jax.random.key(1)

    def batches(step):
        if sampler is None:
            return Batches(ridge.inner, ridge.outer)
        return sampler(ridge.inner, ridge.outer, step, key)

    @jax.jit
    def loop():
        zero = jnp.zeros((), jnp.int32)
        state = algorithm.init(ridge.problem, ridge.params, ridge.hparams, batches(zero))

        def body(state, _):
            return algorithm.step(ridge.problem, state, batches(state.step))

        return jax.lax.scan(body, state, None, length=count)

    return loop()


def gap(ridge, hparams):
    """Distance of a projected gradient step from the point it starts at."""
    gradient = jax.grad(ridge.value)(hparams)
    return float(jnp.linalg.norm(BOX.project(hparams - gradient) - hparams))


def test_the_terms_against_dense_derivatives(ridge):
    rng = np.random.default_rng(0)
    w, v, h = (jnp.asarray(rng.normal(size=4)) for _ in range(3))
    f = ridge.problem.inner
    terms = inner_terms(RestrictedProblem(ridge.problem, w, h, ridge.inner), v)
    hessian = jax.hessian(f)(w, h, ridge.inner)
    mixed = jax.jacobian(jax.grad(f), argnums=1)(w, h, ridge.inner)
    np.testing.assert_allclose(terms.gradient, jax.grad(f)(w, h, ridge.inner), rtol=1e-10)
    np.testing.assert_allclose(terms.curvature, hessian @ v, rtol=1e-10)
    np.testing.assert_allclose(terms.mixed, mixed.T @ v, rtol=1e-10)
    value, outer = outer_terms(RestrictedProblem(ridge.problem, w, h, outer_batch=ridge.outer))
    np.testing.assert_allclose(value, ridge.problem.outer(w, h, ridge.outer), rtol=1e-12)
    np.testing.assert_allclose(
        outer.params, jax.grad(ridge.problem.outer)(w, h, ridge.outer), rtol=1e-10
    )


def test_an_optimality_map_uses_the_transposed_jacobian():
    matrix = jnp.asarray([[2.0, 1.0], [0.0, 3.0]])
    problem = BilevelProblem(
        None, lambda w, h, b: jnp.sum(w), optimality=lambda w, h, b: matrix @ w - h
    )
    v = jnp.asarray([1.0, -1.0])
    terms = inner_terms(RestrictedProblem(problem, jnp.zeros(2), jnp.ones(2)), v)
    np.testing.assert_allclose(terms.curvature, matrix.T @ v)
    np.testing.assert_allclose(terms.mixed, -v)


def test_soba_on_full_batches_reaches_a_stationary_point(ridge):
    algorithm = SOBA(optax.sgd(1.0), step_size=0.3, exponent=0.0, constraint=BOX)
    state, infos = scan(ridge, algorithm, 3000)
    assert gap(ridge, state.visited) < 1e-4
    np.testing.assert_allclose(state.params, ridge.solution(state.visited), atol=1e-4)
    assert int(infos.calls[0]) == 4
    assert float(infos.linear_residual[-1]) < 1e-3


def test_saba_converges_with_constant_steps_where_soba_hovers(ridge):
    sampler = Minibatches(6, blocks=True)
    saba, _ = scan(ridge, SABA(optax.sgd(0.3), step_size=0.1, constraint=BOX), 8000, sampler)
    soba, _ = scan(
        ridge, SOBA(optax.sgd(0.3), step_size=0.1, exponent=0.0, constraint=BOX), 8000, sampler
    )
    # A random path; its end is measured, and the hovering one is the scale.
    assert gap(ridge, saba.visited) < 1e-4
    assert gap(ridge, soba.visited) > 3e-3


def test_the_memory_is_unbiased_and_its_variance_vanishes():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(5, 3)))
    memory = empty_memory(values[0], 5)
    for i in (0, 1, 1, 3):
        estimate, memory = refresh(memory, jnp.asarray(i), values[i])
    # Unseen blocks do not count: the mean is over 0, 1 and 3.
    np.testing.assert_allclose(memory.mean, values[jnp.asarray([0, 1, 3])].mean(0))
    np.testing.assert_allclose(estimate, memory.mean)
    for i in (2, 4):
        _, memory = refresh(memory, jnp.asarray(i), values[i])
    new = values + 0.1 * jnp.asarray(rng.normal(size=(5, 3)))
    estimates = jnp.stack([refresh(memory, jnp.asarray(i), new[i])[0] for i in range(5)])
    np.testing.assert_allclose(estimates.mean(0), new.mean(0), rtol=1e-12)
    same = jnp.stack([refresh(memory, jnp.asarray(i), values[i])[0] for i in range(5)])
    np.testing.assert_allclose(same, jnp.broadcast_to(values.mean(0), (5, 3)), rtol=1e-12)


def test_saba_needs_blocks(ridge):
    batches = Minibatches(6)(ridge.inner, ridge.outer, jnp.asarray(0), jax.random.key(0))
    with pytest.raises(ValueError, match=r"fixed partition.*received independent draws"):
        SABA().init(ridge.problem, ridge.params, ridge.hparams, batches)


def test_the_adjoint_stays_in_its_ball():
    v, g = jnp.asarray([30.0, 40.0]), jnp.asarray([1.0, 0.0])
    np.testing.assert_allclose(into_ball(v, g, 10.0), [6.0, 8.0])
    np.testing.assert_array_equal(into_ball(v, g, 60.0), v)


def test_a_step_size_too_large_is_a_breakdown_and_not_a_nan(ridge):
    state, infos = scan(ridge, SOBA(optax.sgd(0.0), step_size=1e3, exponent=0.0), 200)
    assert int(infos.stop[-1]) == 3
    assert bool(jnp.all(jnp.isfinite(state.params)))


@pytest.mark.parametrize("kind", [SOBA, SABA, F2SA])
def test_the_default_step_descends(ridge, kind):
    state, _ = scan(ridge, kind(constraint=BOX), 100)
    assert float(ridge.value(state.visited)) < float(ridge.value(ridge.hparams))


def test_the_bias_of_f2sa_falls_like_the_inverse_multiplier(ridge):
    truth = jax.grad(ridge.value)(ridge.hparams)
    batches = Batches(ridge.inner, ridge.outer)
    multipliers = np.array([3.0, 10.0, 30.0, 100.0])

    @jax.jit
    def hypergradient(multiplier):
        algorithm = F2SA(
            inner_steps=400, step_size=0.4, multiplier=multiplier, growth=0.0, most=jnp.inf
        )
        state = algorithm.init(ridge.problem, ridge.params, ridge.hparams, batches)
        return algorithm.step(ridge.problem, state, batches)[0].hypergradient

    bias = [float(jnp.linalg.norm(hypergradient(m) - truth)) for m in multipliers]
    slope = np.polyfit(np.log(multipliers), np.log(bias), 1)[0]
    assert -1.15 < slope < -0.85
    assert bias[-1] < 0.02 * float(jnp.linalg.norm(truth))


def test_f2sa_tunes_and_counts(ridge):
    algorithm = F2SA(optax.sgd(1.0), step_size=0.3, multiplier=100.0, constraint=BOX)
    state, infos = scan(ridge, algorithm, 600)
    assert gap(ridge, state.visited) < 5e-3
    assert int(infos.calls[0]) == 3 * 10 + 3
    assert not np.allclose(state.penalised, state.params)


def test_f2sa_needs_an_inner_loss(ridge):
    problem = BilevelProblem(None, ridge.problem.outer, optimality=lambda w, h, b: w - h)
    with pytest.raises(ValueError, match=r"only an optimality map"):
        F2SA().init(problem, ridge.params, ridge.hparams, Batches(ridge.inner, ridge.outer))


def test_an_outer_loss_without_params_is_named(ridge):
    problem = BilevelProblem(ridge.problem.inner, lambda w, h, b: jnp.sum(h**2))
    with pytest.raises(ValueError, match=r"outer loss does not depend on params"):
        SOBA().init(problem, ridge.params, ridge.hparams, Batches(ridge.inner, ridge.outer))


def test_steps_are_pure_and_vmap(ridge):
    algorithm = SOBA(optax.sgd(0.5), constraint=BOX)
    batches = Batches(ridge.inner, ridge.outer)

    def one(hparams):
        state = algorithm.init(ridge.problem, ridge.params, hparams, batches)
        return algorithm.step(ridge.problem, state, batches)[0].hparams

    starts = jnp.stack([ridge.hparams, ridge.hparams + 1])
    together = eqx.filter_jit(jax.vmap(one))(starts)
    np.testing.assert_allclose(together[1], one(starts[1]), rtol=1e-12)
