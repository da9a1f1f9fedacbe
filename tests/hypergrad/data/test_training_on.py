"""What to train on: subsets, weights and mixtures, against searches that try everything."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, ImplicitDifferentiation, Newton
from hypergrad.data import mixture, select, weigh
from hypergrad.linear import Dense
from hypergrad.outer import F2SA, Alternating, Box, ScaledSimplex
from hypergrad.unrolled import OnlineUnrolled, Unrolled

COUNT, SIZE = 12, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT + 40, SIZE))
TRUTH = np.array([1.0, -0.5])
Y = X @ TRUTH + 0.1 * RNG.normal(size=len(X))
# A third of the examples have the wrong sign, those where it matters most.
WRONG = np.argsort(-np.abs(Y[:COUNT]))[:4]
Y[WRONG] *= -1
EXAMPLES = (jnp.asarray(X[:COUNT]), jnp.asarray(Y[:COUNT]))
QUERIES = (jnp.asarray(X[COUNT:]), jnp.asarray(Y[COUNT:]))


def squares(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def inner(w, h, batch):
    return squares(w, h, batch) + 0.05 * w @ w


PROBLEM = BilevelProblem(inner, squares)
ESTIMATOR = ImplicitDifferentiation(Newton(), Dense(), error_estimate=False)
START = jnp.zeros(SIZE)


@jax.jit
def exact(p):
    """Mean query loss of ridge regression with these weights, by the normal equations."""
    x, y = EXAMPLES
    p = p / jnp.sum(p)
    w = jnp.linalg.solve(x.T @ (p[:, None] * x) + 0.05 * jnp.eye(SIZE), x.T @ (p * y))
    return squares(w, None, QUERIES)


def indicator(chosen):
    return jnp.zeros(COUNT).at[jnp.asarray(chosen)].set(1.0)


def test_select_finds_a_subset_near_the_best_of_all():
    k = 8
    found = select(PROBLEM, START, None, EXAMPLES, QUERIES, k, estimator=ESTIMATOR)
    every = jnp.stack([indicator(c) for c in itertools.combinations(range(COUNT), k)])
    losses = np.sort(np.asarray(jax.jit(jax.vmap(exact))(every)))
    assert found.value == pytest.approx(float(exact(indicator(found.chosen))), rel=1e-6)
    # Among the best two in a hundred of the 495 subsets.
    assert found.value <= losses[len(losses) // 50]
    assert found.value == min(found.losses)
    assert not set(found.chosen) & set(WRONG)


def test_selects_steps_improve_on_a_bad_start():
    start = [*WRONG, *np.setdiff1d(np.arange(COUNT), WRONG)[:4]]
    found = select(
        PROBLEM, START, None, EXAMPLES, QUERIES, 8, estimator=ESTIMATOR, start=start, share=0.5
    )
    assert found.losses[0] == pytest.approx(float(exact(indicator(np.array(start)))), rel=1e-6)
    assert found.value < 0.2 * found.losses[0]
    assert max(found.exchanged) <= 4


def test_selects_scores_are_the_derivative_at_the_subset():
    found = select(PROBLEM, START, None, EXAMPLES, QUERIES, 6, estimator=ESTIMATOR, steps=1)
    step = 1e-4 * np.eye(COUNT)
    at = indicator(found.chosen)
    up, down = (np.array([exact(at + sign * d) for d in step]) for sign in (1, -1))
    np.testing.assert_allclose(found.scores, (up - down) / 2e-4, rtol=1e-4, atol=1e-6)


def test_weigh_lowers_the_loss_to_that_of_the_best_weights():
    found = weigh(PROBLEM, START, None, EXAMPLES, QUERIES, estimator=ESTIMATOR, steps=40)
    assert found.losses[0] == pytest.approx(float(exact(jnp.ones(COUNT))), rel=1e-6)
    assert found.value == pytest.approx(float(exact(jnp.asarray(found.weights))), rel=1e-6)
    assert found.value < float(exact(indicator(np.setdiff1d(np.arange(COUNT), WRONG))))
    assert np.all(found.weights[WRONG] < 0.1)
    assert found.weights.min() >= 0
    assert found.weights.max() <= 1


def test_through_a_training_whose_batches_may_be_empty():
    """Batches of one example: where its weight is zero the step does nothing."""
    order = np.arange(2 * COUNT)[:, None] % COUNT
    estimator = Unrolled(optax.sgd(0.2), len(order), stacked=True)
    found = select(
        PROBLEM, START, None, EXAMPLES, QUERIES, 8, estimator=estimator, order=order, steps=3
    )
    w = START
    for (i,) in order:
        if i in found.chosen:
            one = jax.tree.map(lambda a, i=i: a[i : i + 1], EXAMPLES)
            w = w - 0.2 * jax.grad(inner)(w, None, one)
    np.testing.assert_allclose(found.params, w, rtol=1e-6)


def test_data_frames_in_and_out():
    pandas = pytest.importorskip("pandas")
    index = [f"row {i}" for i in range(COUNT)]
    frames = (
        pandas.DataFrame(np.asarray(EXAMPLES[0]), index=index, columns=["a", "b"]),
        pandas.Series(np.asarray(EXAMPLES[1]), index=index, name="y"),
    )
    found = select(PROBLEM, START, None, frames, QUERIES, 8, estimator=ESTIMATOR, steps=1)
    table = found.frame()
    assert list(table.index) == index
    assert list(np.flatnonzero(table["chosen"])) == list(found.chosen)
    weights = weigh(PROBLEM, START, None, frames, QUERIES, estimator=ESTIMATOR, steps=1).frame()
    assert list(weights.columns) == ["weight"]
    texts = (frames[0].assign(a="text"), frames[1])
    with pytest.raises(ValueError, match=r"examples: column 'a': expected numbers"):
        select(PROBLEM, START, None, texts, QUERIES, 8, estimator=ESTIMATOR)
    turned = (frames[0], frames[1].iloc[::-1])
    with pytest.raises(ValueError, match="the same rows in the same order"):
        select(PROBLEM, START, None, turned, QUERIES, 8, estimator=ESTIMATOR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: expected an integer from 1 to 12"),
        ({"k": 13}, "k: expected an integer from 1 to 12"),
        ({"share": 0}, "share: expected"),
        ({"start": [0, 0, 1]}, "start: expected 3 different integers"),
        ({"estimator": ImplicitDifferentiation()}, "expected one that trains"),
        ({"examples": (EXAMPLES[0], EXAMPLES[1][:3])}, "one leading axis"),
    ],
)
def test_bad_input_of_select(change, message):
    given = {"examples": EXAMPLES, "k": 3, "estimator": ESTIMATOR} | change
    examples, k = given.pop("examples"), given.pop("k")
    with pytest.raises(ValueError, match=message):
        select(PROBLEM, START, None, examples, QUERIES, k, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": np.ones(3)}, r"start: expected weights of shape \(12,\)"),
        ({"constraint": ScaledSimplex()}, "^start starts outside its constraint"),
        ({"estimator": ImplicitDifferentiation()}, "expected one that trains"),
        ({"steps": 0}, "steps: expected a positive integer"),
    ],
)
def test_bad_input_of_weigh(change, message):
    given = {"estimator": ESTIMATOR} | change
    with pytest.raises(ValueError, match=message):
        weigh(PROBLEM, START, None, EXAMPLES, QUERIES, **given)


# -- mixtures --------------------------------------------------------------------------------


def domain(centre, count, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(centre, 0.1, size=(count, 1)))


# Means: the solution of a mixture is the mean of the centres, 0.25 at these weights.
DOMAINS = {"low": domain(0.0, 50, 0), "high": domain(1.0, 30, 1)}
TARGET = domain(0.25, 200, 2)


def distance(w, h, batch):
    return jnp.mean((w - batch[:, 0]) ** 2)


MEANS = BilevelProblem(distance, distance)
ONLINE = Alternating(OnlineUnrolled(optax.sgd(0.3), 1), optax.adam(0.1), fits=4)
IMPLICIT = Alternating(
    ImplicitDifferentiation(Newton(), Dense(), error_estimate=False), optax.adam(0.1)
)


@pytest.mark.parametrize(
    "algorithm",
    [ONLINE, F2SA(optax.adam(0.1), inner_steps=10, step_size=0.3), IMPLICIT],
    ids=["online", "F2SA", "implicit"],
)
def test_mixture_finds_the_weights_of_the_target(algorithm):
    found = mixture(
        MEANS,
        jnp.asarray(0.5),
        None,
        DOMAINS,
        TARGET,
        algorithm=algorithm,
        steps=60,
        batch=16,
        every=10,
        start={"low": 0.4, "high": 0.6},
    )
    assert found.weights["high"] == pytest.approx(0.25, abs=0.05)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.trace.shape[1] == 2
    assert float(found.params) == pytest.approx(0.25, abs=0.08)


def mixed(**change):
    given = {"domains": DOMAINS, "algorithm": ONLINE, "steps": 2, "batch": 4, "target": TARGET}
    given |= change
    domains, target = given.pop("domains"), given.pop("target")
    return mixture(MEANS, jnp.asarray(0.5), None, domains, target, **given)


def test_the_first_weights_are_the_start_and_frames_name_the_domains():
    pytest.importorskip("pandas")
    found = mixed(start={"low": 0.3, "high": 0.7})
    np.testing.assert_allclose(found.trace[0], [0.3, 0.7], rtol=1e-6)
    assert list(found.frame().index) == ["low", "high"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": {"low": DOMAINS["low"]}}, "expected at least two"),
        ({"domains": DOMAINS | {"high": jnp.ones((3, 2))}}, "examples of one shape"),
        ({"target": {"x": jnp.ones(3)}}, "target: expected a batch of the outer loss"),
        ({"start": {"low": 0.5, "high": 0.6}}, "on the simplex"),
        ({"start": {"low": 1.0, "high": 0.0}}, "above 0.0005"),
        ({"start": {"low": 1.0}}, "a weight for each of"),
        ({"batch": 0}, "batch: expected a positive integer"),
        ({"floor": 1.0}, "floor: expected"),
        (
            {"algorithm": Alternating(ESTIMATOR, optax.sgd(0.1), constraint=Box(0.0))},
            "without a constraint",
        ),
    ],
)
def test_bad_input_of_mixture(change, message):
    with pytest.raises(ValueError, match=message):
        mixed(**change)
