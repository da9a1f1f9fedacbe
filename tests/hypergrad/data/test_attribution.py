"""Attribution against retraining: without each example, and at shifted weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, ImplicitDifferentiation, Newton
from hypergrad.data import WeightedExamples, attribute, leave_out
from hypergrad.linear import Dense
from hypergrad.linear.vector import vdot
from hypergrad.unrolled import Unrolled
from tests.hypergrad.problems import relative_error

COUNT, QUERIES, SIZE, STEPS = 30, 3, 4, 12
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(COUNT + QUERIES, SIZE)))
Y = jnp.asarray(np.sign(np.asarray(X[:, 0]) + 0.5 * RNG.normal(size=COUNT + QUERIES)))
EXAMPLES, ASKED = (X[:COUNT], Y[:COUNT]), (X[COUNT:], Y[COUNT:])
HPARAMS = {"log_l2": jnp.asarray(-2.0)}


def logistic(w, h, batch):
    x, y = batch
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def inner(w, h, batch):
    return logistic(w, h, batch) + 0.5 * jnp.exp(h["log_l2"]) * w @ w


PROBLEM = BilevelProblem(inner, logistic)


def weighted_objective(w, p):
    """Written out, with nothing of the library."""
    x, y = EXAMPLES
    penalty = 0.5 * jnp.exp(HPARAMS["log_l2"]) * w @ w
    return jnp.sum(p * jax.nn.softplus(-y * (x @ w))) / jnp.sum(p) + penalty


@jax.jit
def trained(p):
    def newton(_, w):
        return w - jnp.linalg.solve(
            jax.hessian(weighted_objective)(w, p), jax.grad(weighted_objective)(w, p)
        )

    return jax.lax.fori_loop(0, 12, newton, jnp.zeros(SIZE))


def query_losses(w):
    return jax.nn.softplus(-ASKED[1] * (ASKED[0] @ w))


ONES = jnp.ones(COUNT)


def differences(train):
    """Central differences of full retraining, in every weight."""
    step = 1e-4
    moved = jax.jit(jax.vmap(lambda p: query_losses(train(p))))
    up, down = (moved(ONES + sign * step * jnp.eye(COUNT)) for sign in (1, -1))
    return (up - down).T / (2 * step)


@pytest.fixture(scope="module")
def implicit():
    estimator = ImplicitDifferentiation(linear_solver=Dense())
    return attribute(PROBLEM, trained(ONES), HPARAMS, EXAMPLES, ASKED, estimator=estimator)


def test_it_is_the_derivative_of_retraining_in_the_weights(implicit):
    np.testing.assert_allclose(implicit.losses, query_losses(trained(ONES)), rtol=1e-12)
    assert relative_error(implicit.scores, differences(trained)) < 1e-7


def test_it_foretells_retraining_without_each_example(implicit):
    without = jax.vmap(lambda p: query_losses(trained(p)))(ONES - jnp.eye(COUNT))
    changes = (without - implicit.losses).T
    for predicted, change in zip(implicit.leave_one_out, changes, strict=True):
        assert np.corrcoef(predicted, change)[0, 1] > 0.99
    assert relative_error(implicit.leave_one_out, changes) < 0.2


def test_its_error_estimate_covers_a_loose_solve(implicit):
    estimator = ImplicitDifferentiation()
    near = trained(ONES) + 1e-3
    loose = attribute(PROBLEM, near, HPARAMS, EXAMPLES, ASKED, estimator=estimator, chunk=2)
    assert loose.info.error.shape == (QUERIES,)
    for mine, row, truth in zip(loose.info.error, loose.scores, implicit.scores, strict=True):
        assert 1e-5 < relative_error(row, truth) < float(mine) < 0.3


def test_a_solver_trains_first(implicit):
    estimator = ImplicitDifferentiation(Newton(), Dense())
    found = attribute(PROBLEM, jnp.zeros(SIZE), HPARAMS, EXAMPLES, ASKED, estimator=estimator)
    assert relative_error(found.scores, implicit.scores) < 1e-8


@pytest.mark.parametrize("batch", [None, 5])
def test_through_a_whole_training(batch):
    order = None if batch is None else RNG.integers(0, COUNT, size=(STEPS, batch))
    rate = 0.5

    def train(p):
        w = jnp.zeros(SIZE)
        for t in range(STEPS):
            chosen = jnp.arange(COUNT) if order is None else order[t]
            x, y = EXAMPLES[0][chosen], EXAMPLES[1][chosen]

            def loss(w, x=x, y=y, p=p[chosen]):
                data = jnp.sum(p * jax.nn.softplus(-y * (x @ w))) / jnp.sum(p)
                return data + 0.5 * jnp.exp(HPARAMS["log_l2"]) * w @ w

            w = w - rate * jax.grad(loss)(w)
        return w

    estimator = Unrolled(optax.sgd(rate), STEPS, stacked=batch is not None)
    found = attribute(
        PROBLEM,
        jnp.zeros(SIZE),
        HPARAMS,
        EXAMPLES,
        ASKED,
        estimator=estimator,
        order=order,
        chunk=QUERIES,
    )
    np.testing.assert_allclose(found.losses, query_losses(train(ONES)), rtol=1e-12)
    assert relative_error(found.scores, differences(train)) < 1e-7


def test_select_keeps_what_lowers_the_loss(implicit):
    chosen = implicit.select(5)
    means = np.asarray(implicit.scores.mean(axis=0))
    assert sorted(means)[:5] == list(means[np.asarray(chosen)])


def test_no_gradient_of_a_single_example_is_formed():
    """By the compiler's account: the examples' gradients would be 50 times the parameters."""
    hidden, count = 1000, 50
    x = jnp.asarray(RNG.normal(size=(count, SIZE)))
    problem = BilevelProblem(
        lambda w, h, b: jnp.mean((jnp.tanh(b @ w["in"]) @ w["out"]) ** 2) + h * vdot(w, w),
        lambda w, h, b: jnp.mean(jnp.tanh(b @ w["in"]) @ w["out"]),
    )
    w = {"in": jnp.ones((SIZE, hidden)), "out": jnp.ones((hidden, hidden))}
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(w))
    weighted = WeightedExamples(problem, jnp.asarray(1.0), x)
    weighing = BilevelProblem(weighted, lambda w, p, q: problem.outer(w, None, q))
    estimator = ImplicitDifferentiation(error_estimate=False)

    def scores(w, x):
        everyone, ones = jnp.arange(count), jnp.ones(count)
        state = estimator.init(weighing, w, ones, everyone)
        return estimator.hypergradient(weighing, state, ones, everyone, x[:1]).grad

    compiled = jax.jit(scores).lower(w, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * count * size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": (X[:COUNT], Y[:3])}, "one leading axis over the examples"),
        ({"queries": (X[:COUNT], jnp.asarray(1.0))}, "one leading axis over the examples"),
        (
            {"problem": BilevelProblem(lambda w, h, b: COUNT * len(b[1]) * inner(w, h, b), inner)},
            "must be a mean over the examples",
        ),
        ({"order": [[0, COUNT]]}, "order: expected integers from 0 to 29"),
        ({"order": [0, 1]}, "order: expected integers"),
        ({"chunk": 0}, "chunk: expected a positive integer"),
        ({"queries": {"x": X[COUNT:]}}, "queries: expected a batch of the outer loss"),
        ({"queries": (X[COUNT:, :2], Y[COUNT:])}, "queries: expected a batch of the outer loss"),
    ],
)
def test_bad_input(change, message):
    given = {
        "problem": PROBLEM,
        "params": jnp.zeros(SIZE),
        "hparams": HPARAMS,
        "examples": EXAMPLES,
        "queries": ASKED,
    }
    with pytest.raises(ValueError, match=message):
        attribute(**(given | change))


def test_weights_of_one_and_of_zero():
    weighted = WeightedExamples(PROBLEM, HPARAMS, EXAMPLES)
    w, everyone = jnp.ones(SIZE), jnp.arange(COUNT)
    assert weighted(w, ONES, everyone) == pytest.approx(float(inner(w, HPARAMS, EXAMPLES)))
    without = jax.tree.map(lambda a: a[1:], EXAMPLES)
    expected = float(inner(w, HPARAMS, without))
    assert weighted(w, ONES.at[0].set(0), everyone) == pytest.approx(expected)


# -- how far a derivative goes -------------------------------------------------------------------


def test_leaving_out_is_retraining_without_the_example(implicit):
    numbers = [3, 0, 17]
    estimator = ImplicitDifferentiation(Newton(), Dense())
    left = leave_out(
        PROBLEM, jnp.zeros(SIZE), HPARAMS, EXAMPLES, ASKED, numbers, estimator=estimator
    )
    truth = [query_losses(trained(ONES.at[i].set(0.0))) - implicit.losses for i in numbers]
    np.testing.assert_allclose(left.changes, np.array(truth).T, rtol=1e-6, atol=1e-9)
    assert left.agreement(implicit) > 0.99


def test_the_agreement_tells_where_a_few_parameters_rest_on_a_few_examples():
    """Least squares with 26 features: the mean leverage is 26 / 30."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(COUNT, 26)), rng.normal(size=COUNT)
    asked = (jnp.asarray(rng.normal(size=(QUERIES, 26))), jnp.asarray(rng.normal(size=QUERIES)))
    problem = BilevelProblem(*[lambda w, h, b: jnp.mean((b[0] @ w - b[1]) ** 2)] * 2)
    data = jnp.asarray(x), jnp.asarray(y)
    estimator = ImplicitDifferentiation(Newton(), Dense())
    start, numbers = jnp.zeros(26), np.arange(10)
    found = attribute(problem, start, None, data, asked, estimator=estimator)
    left = leave_out(problem, start, None, data, asked, numbers, estimator=estimator)

    def solved(p):
        return np.linalg.solve(x.T @ (p[:, None] * x), x.T @ (p * y))

    def of(w):
        return (np.asarray(asked[0]) @ w - np.asarray(asked[1])) ** 2

    truth = (
        np.array([of(solved(1.0 - np.eye(COUNT)[i])) for i in numbers]).T
        - of(solved(np.ones(COUNT)))[:, None]
    )
    np.testing.assert_allclose(left.changes, truth, rtol=1e-6, atol=1e-9)
    # The derivative is right ...
    step = 1e-5 * np.eye(COUNT)
    slopes = np.array([(of(solved(1 + d)) - of(solved(1 - d))) / 2e-5 for d in step]).T
    assert relative_error(found.scores, slopes) < 1e-5
    # ... and leaving a whole example out is another matter.
    assert left.agreement(found) < 0.9


def test_bad_input_of_leave_out(implicit):
    estimator = ImplicitDifferentiation(Newton(), Dense())

    def left(numbers, queries=ASKED, **change):
        given = {"estimator": estimator} | change
        start = jnp.zeros(SIZE)
        return leave_out(PROBLEM, start, HPARAMS, EXAMPLES, queries, numbers, **given)

    for numbers in ([], [30], [-1], [[0]], [0.5]):
        with pytest.raises(ValueError, match="numbers: expected integers from 0 to 29"):
            left(numbers)
    with pytest.raises(ValueError, match="received 3 to 30"):
        left([3, 30])
    with pytest.raises(ValueError, match="expected one that trains"):
        left([0], estimator=ImplicitDifferentiation())
    with pytest.raises(ValueError, match="expected 1 queries"):
        left([0], queries=(X[:1], Y[:1])).agreement(implicit)
