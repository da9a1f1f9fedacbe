"""The error estimate sees that an unstable run multiplies its own roundings; others are untouched.

The truth is the same run in float64, from the float32 values of everything given.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, InaccurateHypergradientError, hypergradient
from hypergrad.unrolled import (
    ForwardUnrolled,
    OnlineUnrolled,
    StepFunction,
    TruncatedUnrolled,
    Unrolled,
)
from hypergrad.unrolled.roundings import _CAUTION, Growth, growth_by_adjoints

pytestmark = pytest.mark.filterwarnings("ignore::hypergrad.InaccurateHypergradientWarning")

# What a stable training of 100 steps may be said to lose: three of float32's seven digits.
STABLE = 1e-4

LOGISTIC_MAP = StepFunction(lambda w, state, h, b: (h * w * (1 - w), state))
WEIGHTED_END = BilevelProblem(
    lambda w, h, b: jnp.sum(w**2),
    lambda w, h, b: jnp.sum(w * jnp.arange(1, w.size + 1, dtype=w.dtype)),
)
CHAOTIC = WEIGHTED_END, np.array([0.2, 0.3, 0.41]), 3.9

MODES = {
    "reverse": lambda update, steps: Unrolled(update, steps),
    "reverse in blocks": lambda update, steps: Unrolled(update, steps, memory=400),
    "forward": lambda update, steps: ForwardUnrolled(update, steps),
    "truncated": lambda update, steps: TruncatedUnrolled(update, steps, steps),
}


def as_float32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def vector(tree):
    return np.concatenate([np.ravel(a).astype(float) for a in jax.tree.leaves(tree)])


def errors(estimator, problem, *arguments):
    """True and estimated relative error of the float32 hypergradient."""
    narrow = as_float32(arguments)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), narrow)
    truth = vector(hypergradient(problem, *wide, estimator=estimator).grad)
    out = hypergradient(problem, *narrow, estimator=estimator)
    got = vector(out.grad)
    return np.linalg.norm(got - truth) / np.linalg.norm(got), float(out.info.error)


@pytest.mark.parametrize("steps", [20, 40])
@pytest.mark.parametrize("mode", MODES)
def test_the_roundings_of_a_chaotic_run_are_in_the_estimate(mode, steps):
    true, estimate = errors(MODES[mode](LOGISTIC_MAP, steps), *CHAOTIC)
    assert true > (0.5 if steps == 40 else 1e-3)
    assert true < estimate


@pytest.mark.parametrize("mode", MODES)
def test_strict_refuses_a_chaotic_run(mode):
    arguments = as_float32(CHAOTIC[1:])
    with pytest.raises(InaccurateHypergradientError, match="exceeds its norm"):
        hypergradient(
            WEIGHTED_END, *arguments, estimator=MODES[mode](LOGISTIC_MAP, 40), strict=True
        )


def test_a_window_in_a_chaotic_run_is_marked_unusable():
    estimator = TruncatedUnrolled(LOGISTIC_MAP, 40, 5)
    true, estimate = errors(estimator, *CHAOTIC)
    assert true > 0.1
    assert estimate > 1


def test_online_the_growth_is_carried_from_fit_to_fit():
    online, (start, h) = OnlineUnrolled(LOGISTIC_MAP, 10), as_float32(CHAOTIC[1:])
    state = online.init(WEIGHTED_END, start, h, None)
    for _ in range(4):
        state, _ = online.fit(WEIGHTED_END, state, h, None)
    out = online.hypergradient(WEIGHTED_END, state, h, None, None)
    whole = ForwardUnrolled(LOGISTIC_MAP, 40)
    assert out.info.error == pytest.approx(
        float(hypergradient(WEIGHTED_END, start, h, estimator=whole).info.error), rel=0.1
    )
    assert out.info.error > 1


def network():
    """A network, its start, hyperparameters but for the rate, and both batches."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = np.sin(2 * x[:, 0]) + x[:, 1] ** 2
    start = {"in": rng.normal(size=(3, 20)), "out": 0.5 * rng.normal(size=20)}

    def loss(p, batch):
        return jnp.mean((jnp.tanh(batch[0] @ p["in"]) @ p["out"] - batch[1]) ** 2)

    def inner(p, h, batch):
        return loss(p, batch) + jnp.exp(h["l2"]) * sum(jnp.sum(a**2) for a in p.values())

    problem = BilevelProblem(inner, lambda p, h, batch: loss(p, batch))
    return problem, start, (x[:20], y[:20]), (x[20:], y[20:])


def quadratic(condition):
    """Least distance under a Hessian of this condition, of largest curvature one."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    hessian = basis @ np.diag(np.geomspace(1 / condition, 1, 20)) @ basis.T
    at = rng.normal(size=20)

    def inner(w, h, batch):
        off = w - batch[1]
        return 0.5 * off @ batch[0] @ off + 0.5 * jnp.exp(h["l2"]) * w @ w

    problem = BilevelProblem(inner, lambda w, h, batch: 0.5 * jnp.sum((w - batch[1]) ** 2))
    return problem, rng.normal(size=20), (hessian, at), (hessian, at + rng.normal(size=20))


OPTIMIZERS = {
    "sgd": lambda h: optax.sgd(h["rate"]),
    "momentum": lambda h: optax.sgd(h["rate"], momentum=0.9),
    "adam": lambda h: optax.adam(h["rate"], eps_root=1e-12),
}


def trained(make, optimizer, rate, steps, mode):
    problem, start, train, valid = make
    h = {"rate": rate, "l2": -5.0}
    return errors(MODES[mode](OPTIMIZERS[optimizer], steps), problem, start, h, train, valid)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize(
    ("make", "optimizer", "rate"),
    [
        (network, "sgd", 0.05),
        (network, "momentum", 0.01),
        (network, "adam", 0.03),
        # Just below the edge of stability, which is two, and (2 + 2 · 0.9) for momentum.
        (lambda: quadratic(1e3), "sgd", 1.95),
        (lambda: quadratic(1e3), "momentum", 3.6),
        (lambda: quadratic(1e3), "adam", 0.03),
    ],
)
def test_a_stable_training_keeps_its_small_estimate(make, optimizer, rate, mode):
    true, estimate = trained(make(), optimizer, rate, 100, mode)
    assert true < 3 * estimate < 3 * STABLE


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_diverging_run_without_curvature_of_its_steps_keeps_its_digits(mode):
    # The roundings grow, and so do the params.
    true, estimate = trained(quadratic(1e3), "sgd", 2.5, 20, mode)
    assert true < estimate < STABLE


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize(("rate", "steps"), [(4.0, 30), (7.0, 10), (7.0, 30)])
def test_the_roundings_of_an_unstable_training_are_in_the_estimate(rate, steps, mode):
    # Curvature at most one: gradient descent is stable below a rate of two.
    rng = np.random.default_rng(0)
    target, start = rng.normal(size=(2, 40))
    problem = BilevelProblem(
        lambda w, h, b: jnp.sum(1 - jnp.cos(w - h["centre"])),
        lambda w, h, b: 0.5 * jnp.sum((w - b) ** 2),
    )
    estimator = MODES[mode](optax.sgd(rate), steps)
    arguments = problem, start, {"centre": np.zeros(40)}, None, target
    true, estimate = errors(estimator, *arguments)
    assert true > STABLE
    assert true < 3 * estimate


@pytest.mark.slow
def test_a_long_training_beyond_the_edge_of_stability_is_marked_unusable():
    true, estimate = trained(network(), "adam", 0.1, 1000, "reverse")
    assert true > 0.1
    assert estimate > true


def test_params_that_pass_through_zero_have_lost_nothing():
    # From -1 to 1 in equal steps: at the middle they are zero.
    problem = BilevelProblem(lambda w, h, b: -h * w, lambda w, h, b: w**2)
    for mode in ("reverse", "forward"):
        true, estimate = errors(MODES[mode](optax.sgd(0.125), 16), problem, -1.0, 1.0)
        assert true < estimate < 1e-5


def test_the_growth_of_a_run_that_doubles_every_rounding():
    sizes, adjoints = jnp.ones(6), 2.0 ** jnp.arange(5, -1, -1)
    counted = 1 + _CAUTION * 31
    np.testing.assert_array_equal(growth_by_adjoints(sizes, adjoints), counted)
    growth, w = Growth.none(jnp.ones(())), jnp.ones(())
    for _ in range(5):
        growth = growth.after(w, jnp.asarray(2.0))
    assert growth.counted == counted


def test_a_term_has_the_growth_of_what_comes_after_it():
    # It doubles for three steps, and forgets: to the last steps the first are nothing.
    sizes, adjoints = jnp.ones(7), jnp.array([0.5, 0.25, 0.125, 0.0625, 0.25, 0.5, 1.0])
    grown = np.array([8, 8, 8, 8, 2, 1, 1]) - 1
    np.testing.assert_array_equal(growth_by_adjoints(sizes, adjoints), 1 + _CAUTION * grown)


@pytest.mark.parametrize(
    ("sizes", "adjoints"),
    [
        ([1.0, 1.0, 1.0], [0.25, 0.5, 1.0]),  # contracts
        ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0]),  # through zero
        ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0]),  # from zero
        ([1.0, 2.0, 4.0], [4.0, 2.0, 1.0]),  # grows like its roundings
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),  # without a derivative
        ([np.nan, np.nan, np.nan], [1.0, 1.0, 1.0]),  # hidden entries that are not finite
    ],
)
def test_what_does_not_count_as_growth(sizes, adjoints):
    np.testing.assert_array_equal(growth_by_adjoints(jnp.array(sizes), jnp.array(adjoints)), 1)


def test_growth_beyond_the_largest_number_stays_finite():
    growth = growth_by_adjoints(jnp.ones(2), jnp.array([jnp.inf, 1.0]))
    np.testing.assert_array_equal(growth, [jnp.finfo(growth.dtype).max] * 2)
