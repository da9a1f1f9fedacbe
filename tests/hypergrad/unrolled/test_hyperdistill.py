import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem
from hypergrad.outer import Alternating, Minibatches, run
from hypergrad.unrolled import HyperDistill, Unrolled

RATE, STEPS = 0.3, 5
RNG = np.random.default_rng(0)
MIX, PULL, GOAL = RNG.normal(size=(4, 2)), RNG.normal(size=4), RNG.normal(size=4)
START = jnp.asarray(RNG.normal(size=4))


def outer(w, h, batch):
    return 0.5 * jnp.sum((w - GOAL) ** 2) + 0.1 * jnp.sum(h["shift"] ** 2)


def inner(w, h, batch):
    """Curvature the same in all directions; the second derivatives in `w` and `h` move with `w`."""
    return 0.5 * h["decay"] * jnp.sum(w**2) - w @ (PULL + MIX @ h["shift"])


EXACT = BilevelProblem(inner, outer)
HPARAMS = {"decay": jnp.asarray(0.8), "shift": jnp.asarray([0.3, -0.5])}


def walked(estimator, problem, hparams, count, key=None):
    """The states after 0, 1, …, `count` steps."""
    states = [estimator.init(problem, START, hparams, None)]
    fit = jax.jit(lambda s: estimator.fit(problem, s, hparams, None, key=key)[0])
    for _ in range(count):
        states.append(fit(states[-1]))
    return states


def test_it_is_the_reverse_product_where_all_steps_forget_alike():
    estimator = HyperDistill(optax.sgd(RATE), STEPS, decay=1 - RATE * 0.8)
    states = walked(estimator, EXACT, HPARAMS, STEPS)
    found = jax.jit(lambda s: estimator.hypergradient(EXACT, s, HPARAMS, None, None))
    for steps in (1, 2, STEPS):
        whole = Unrolled(optax.sgd(RATE), steps)
        start = whole.init(EXACT, START, HPARAMS, None)
        true = whole.hypergradient(EXACT, start, HPARAMS, None, None)
        here = found(states[steps])
        np.testing.assert_allclose(here.value, true.value, rtol=1e-12)
        for name in HPARAMS:
            np.testing.assert_allclose(here.grad[name], true.grad[name], rtol=1e-10)
    # At the end of the run the regression has found that nothing needs to be scaled.
    np.testing.assert_allclose(here.state.factor, 1.0, rtol=1e-10)


def test_the_factor_is_the_regression_of_true_on_distilled_derivatives():
    root = RNG.normal(size=(4, 4))
    hessian = root @ root.T / 4 + 0.2 * np.eye(4)
    problem = BilevelProblem(
        lambda w, h, b: 0.5 * w @ hessian @ w - w @ (PULL + MIX @ h["shift"]), outer
    )
    hparams = {"shift": HPARAMS["shift"]}
    estimator = HyperDistill(optax.sgd(RATE), STEPS, decay=0.9)
    end = walked(estimator, problem, hparams, STEPS)[-1]
    found = estimator.hypergradient(problem, end, hparams, None, None)
    adjoint = alpha = np.asarray(end.params) - GOAL
    total, mass, above, below = np.zeros(2), 0.0, 0.0, 0.0
    for behind in range(STEPS):
        total = total + RATE * MIX.T @ adjoint
        adjoint = adjoint - RATE * hessian @ adjoint
        mass += 0.9**behind
        distilled = mass * RATE * MIX.T @ alpha
        above, below = above + distilled @ total, below + distilled @ distilled
    np.testing.assert_allclose(found.state.factor, above / below, rtol=1e-10)
    direct = 0.2 * np.asarray(hparams["shift"])
    np.testing.assert_allclose(found.grad["shift"], direct + above / below * distilled, rtol=1e-10)
    # The next estimate is due fifty runs later.
    later = HyperDistill(optax.sgd(RATE), STEPS, decay=0.9, every=50)
    state = walked(later, problem, hparams, 2 * STEPS)[-1]
    assert float(later.hypergradient(problem, state, hparams, None, None).state.factor) == 1.0


def test_a_run_begins_anew_and_draws_its_batch():
    estimator = HyperDistill(optax.sgd(RATE), 2, decay=0.9)
    states = walked(estimator, EXACT, HPARAMS, 3, key=jax.random.key(0))
    np.testing.assert_allclose(states[3].params, states[1].params)
    assert [int(s.taken) for s in states] == [0, 1, 2, 1]
    assert [int(s.runs) for s in states] == [0, 0, 1, 1]

    def kept(key):
        first = estimator.init(EXACT, START, HPARAMS, jnp.zeros(1))
        for batch in (1.0, 2.0):
            first, _ = estimator.fit(EXACT, first, HPARAMS, jnp.full(1, batch), key=key)
        return first.batch[0]

    draws = jax.jit(jax.vmap(kept))(jax.random.split(jax.random.key(1), 2000))
    # p = (S − 1) / S with S = 1.9; four standard deviations.
    share = 0.9 / 1.9
    assert abs(float(jnp.mean(draws == 1.0)) - share) < 4 * np.sqrt(share * (1 - share) / 2000)


def test_the_batch_is_not_drawn_by_the_noise_of_the_step():
    """The noise of the second step tells nothing about whether its batch is taken."""

    def noisy(w, h, batch, key):
        return inner(w, h, None) + w[0] * jax.random.uniform(key, dtype=jnp.float64)

    problem = BilevelProblem(noisy, lambda w, h, b, key: outer(w, h, b), stochastic=True)
    estimator = HyperDistill(optax.sgd(RATE), 9, decay=0.9)

    def second(key):
        state = estimator.init(problem, START, HPARAMS, jnp.zeros(1), key=key)
        for batch in (1.0, 2.0):
            state, _ = estimator.fit(problem, state, HPARAMS, jnp.full(1, batch), key=key)
        # Uniform numbers and the draws of a Bernoulli variable are of the same bits.
        return state.batch[0], jax.random.uniform(jax.random.fold_in(key, 1), dtype=jnp.float64)

    batch, noise = jax.jit(jax.vmap(second))(jax.random.split(jax.random.key(2), 1000))
    assert abs(np.corrcoef(batch, noise)[0, 1]) < 4 / np.sqrt(1000)


def test_online_tuning_lowers_the_loss_at_the_end_of_a_run_and_resumes(tmp_path):
    x = RNG.normal(size=(48, 4))
    y = x @ np.array([1.0, -1.0, 0.1, 0.0]) + 0.8 * RNG.normal(size=48)
    train, validation = (x[::2], y[::2]), (x[1::2], y[1::2])

    def mse(w, h, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    problem = BilevelProblem(lambda w, h, b: mse(w, h, b) + 0.5 * jnp.sum(jnp.exp(h) * w**2), mse)
    algorithm = Alternating(HyperDistill(optax.sgd(0.2), 20, decay=0.9), optax.sgd(0.3))
    parts = (jnp.zeros(4), jnp.zeros(4), train, validation)

    def tune(steps, **more):
        sampler = Minibatches(12)
        return run(problem, algorithm, *parts, steps=steps, every=20, sampler=sampler, **more)

    whole = tune(200)
    ends = [row["validation"] for row in whole.history[19::20]]
    assert ends[-1] < 0.97 * ends[0]
    path = tmp_path / "run.npz"
    tune(40, checkpoint=path)
    np.testing.assert_array_equal(tune(200, checkpoint=path).hparams, whole.hparams)


@pytest.mark.parametrize("types", [("float32", "float64"), ("float64", "float32")])
def test_params_and_hparams_of_different_types(types):
    start = START.astype(types[0])
    hparams = {name: leaf.astype(types[1]) for name, leaf in HPARAMS.items()}
    estimator = HyperDistill(optax.sgd(RATE), 2, decay=1 - RATE * 0.8)
    state = estimator.init(EXACT, start, hparams, None)
    for _ in range(2):
        state, _ = estimator.fit(EXACT, state, hparams, None)
    found = estimator.hypergradient(EXACT, state, hparams, None, None)
    whole = Unrolled(optax.sgd(RATE), 2)
    true = whole.hypergradient(EXACT, whole.init(EXACT, START, HPARAMS, None), HPARAMS, None, None)
    for name in HPARAMS:
        assert found.grad[name].dtype == types[1]
        np.testing.assert_allclose(found.grad[name], true.grad[name], rtol=1e-5)
    assert jax.tree.map(jnp.result_type, found.state) == jax.tree.map(jnp.result_type, state)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="every: expected an integer >= 1, received 0"):
        HyperDistill(optax.sgd(RATE), STEPS, every=0)
    for wrong in (-0.1, 2.0, float("nan"), True):
        with pytest.raises(ValueError, match="HyperDistill: decay: expected a"):
            HyperDistill(optax.sgd(RATE), STEPS, decay=wrong)
    estimator = HyperDistill(optax.sgd(RATE), STEPS)
    hidden = {"decay": jnp.asarray(0.8), "shift": jnp.zeros(2), "seed": jnp.asarray(1.0)}
    state = estimator.init(EXACT, START, hidden, None)
    with pytest.raises(ValueError, match="cannot see hyperparameter 'seed'"):
        estimator.hypergradient(EXACT, state, hidden, None, None)
