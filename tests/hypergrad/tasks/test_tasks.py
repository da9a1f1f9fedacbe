import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, FunctionSolver, ImplicitDifferentiation, hypergradient
from hypergrad.linear import Dense
from hypergrad.outer import Alternating, OverTuningWarning, PairedBatches, run
from hypergrad.tasks import UnseenTasks, find_breaks, over_tasks, task_bound


def ridge(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) + jnp.exp(h) * jnp.sum(w**2)


def mse(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def closed_form(w, h, batch):
    x, y = batch
    return jnp.linalg.solve(x.T @ x / len(y) + jnp.exp(h) * jnp.eye(x.shape[1]), x.T @ y / len(y))


ONE = BilevelProblem(ridge, mse)
SOLVER = FunctionSolver(closed_form)
TASKS = over_tasks(ONE, SOLVER)


def draw(count, seed=0):
    """Training and validation data of `count` regressions with four weights."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(count, 4)) * 0.5
    parts = []
    for rows in (6, 8):
        x = rng.normal(size=(count, rows, 4))
        y = np.einsum("tij,tj->ti", x, truth) + rng.normal(size=(count, rows))
        parts.append((jnp.asarray(x), jnp.asarray(y)))
    return parts


ALL = FunctionSolver(lambda w, h, b: jax.vmap(lambda one: closed_form(None, h, one))(b))
ESTIMATOR = ImplicitDifferentiation(ALL, Dense())
COLD = Alternating(ESTIMATOR, optax.sgd(0.3), start="cold")


def test_the_hypergradient_is_the_mean_of_the_tasks():
    train, valid = draw(5)
    h = jnp.asarray(-1.0)
    out = hypergradient(TASKS, jnp.zeros((5, 4)), h, train, valid, estimator=ESTIMATOR)

    def value(h, i):
        own, other = (jax.tree.map(lambda a: a[i], part) for part in (train, valid))
        return mse(closed_form(None, h, own), h, other)

    slope = jax.jit(jax.value_and_grad(value))
    truth = [slope(h, i) for i in range(5)]
    assert float(out.value) == pytest.approx(np.mean([float(v) for v, _ in truth]), rel=1e-10)
    assert float(out.grad) == pytest.approx(np.mean([float(g) for _, g in truth]), rel=1e-8)
    at_solution = TASKS.unseen_losses(h, UnseenTasks(train, valid, jnp.zeros(4)))
    np.testing.assert_allclose(at_solution, [float(v) for v, _ in truth], rtol=1e-10)


def tuned(steps, path=None, **options):
    train, valid = draw(12)
    unseen = UnseenTasks(*draw(20, seed=9), jnp.zeros(4))
    return run(
        TASKS,
        COLD,
        jnp.zeros((4, 4)),
        jnp.asarray(-3.0),
        train,
        valid,
        steps=steps,
        sampler=PairedBatches(4, evaluate=False),
        holdout_data=unseen,
        checkpoint=path,
        checkpoint_seconds=0,
        **options,
    ), unseen


def test_batches_of_tasks_tune_for_tasks_not_seen_and_resume(tmp_path):
    whole, unseen = tuned(10)
    losses = TASKS.unseen_losses(whole.hparams, unseen)
    assert whole.history[-1]["holdout"] == pytest.approx(float(jnp.mean(losses)), rel=1e-10)
    assert whole.history[-1]["holdout"] < whole.history[0]["holdout"]
    tuned(6, tmp_path / "run")
    again, _ = tuned(10, tmp_path / "run")
    assert float(again.hparams) == float(whole.hparams)
    assert [r["holdout"] for r in again.history] == [r["holdout"] for r in whole.history]


def test_a_misfit_of_axes_is_named():
    train, valid = draw(3)
    with pytest.raises(ValueError, match="share a leading axis of tasks, received"):
        TASKS.inner_loss(jnp.zeros((2, 4)), jnp.asarray(0.0), train)
    with pytest.raises(ValueError, match="solver: expected one"):
        over_tasks(ONE).unseen_losses(0.0, UnseenTasks(train, valid, jnp.zeros(4)))
    with pytest.raises(ValueError, match="as many rows, received 3 and 2"):
        PairedBatches(2)(jnp.ones(3), jnp.ones(2), jnp.asarray(0), jax.random.key(0))


def test_the_bound_covers_the_gap_of_threshold_losses():
    """One piece boundary each: the loss of a task is 1 left of its own threshold, 0 right of it."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 1, 201)
    for n in (8, 64, 512):
        gaps = [
            np.abs(np.mean(grid[:, None] < rng.random(n), axis=1) - (1 - grid)).max()
            for _ in range(50)
        ]
        assert np.quantile(gaps, 0.95) < task_bound(n, 2, 1)
    # Rate: a fourth of the gap for sixteen times the tasks, up to the logarithm.
    assert 3 < task_bound(100, 2, 1) / task_bound(1600, 2, 1) < 4
    assert task_bound(50, 4, 2, span=3.0) == pytest.approx(3 * task_bound(50, 4, 2))
    with pytest.raises(ValueError, match="tasks: expected an integer >= 1, received 0"):
        task_bound(0, 1, 1)


def relu(h):
    """A unit dies at h = 0.3: slope 2 (h − 0.3) + 1 before, 2 (h − 0.3) after."""
    alive = h < 0.3
    return (h - 0.3) ** 2 + min(h - 0.3, 0.0), 2 * (h - 0.3) + (1.0 if alive else 0.0)


def jump(h):
    value, slope = np.sin(3 * h), 3 * np.cos(3 * h)
    return value + (0.2 if h > -0.6180 else 0.0), slope


@pytest.mark.parametrize(("function", "at", "kind", "height"), [
    (relu, 0.3, "kink", 1.0),
    (jump, -0.6180, "jump", 0.2),
])  # fmt: skip
def test_breaks_are_found_to_a_thousandth(function, at, kind, height):
    (found,) = find_breaks(function, -1.0, 1.07, points=41, width=1e-3)
    assert found.kind == kind
    assert found.low <= at <= found.high
    assert found.high - found.low <= 1e-3
    assert found.height == pytest.approx(height, abs=0.02)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: (np.tanh(200 * h), 200 / np.cosh(200 * h) ** 2),
        lambda h: (np.sin(30 * h), 30 * np.cos(30 * h)),
        lambda h: (1.0, 0.0),
    ],
    ids=["steep", "oscillating", "constant"],
)
def test_smooth_functions_have_no_breaks(function):
    assert find_breaks(function, -1.0, 1.07, points=41) == []


def test_what_is_not_finite_is_named():
    with pytest.raises(ValueError, match="received value nan"):
        find_breaks(lambda h: (np.nan if h > 0 else 0.0, 0.0), -1.0, 1.0)
    with pytest.raises(ValueError, match="expected low < high"):
        find_breaks(relu, 1.0, 1.0)


def test_tuning_too_few_tasks_is_noticed():
    """Each feature has its own penalty, the two tasks seen are noise: they can be fitted."""
    rng = np.random.default_rng(1)

    def tasks(count, rows):
        x = rng.normal(size=(count, rows, 20))
        return jnp.asarray(x), jnp.asarray(rng.normal(size=(count, rows)) + x[..., 0])

    solve = lambda h, x, y: jnp.linalg.solve(  # noqa: E731
        x.T @ x / len(y) + jnp.diag(jnp.exp(h)), x.T @ y / len(y)
    )
    one = BilevelProblem(
        lambda w, h, b: jnp.mean((b[0] @ w - b[1]) ** 2) + jnp.sum(jnp.exp(h) * w**2), mse
    )
    single = FunctionSolver(lambda w, h, b: solve(h, *b))
    both = FunctionSolver(lambda w, h, b: jax.vmap(lambda x, y: solve(h, x, y))(*b))
    unseen = UnseenTasks(tasks(20, 15), tasks(20, 15), jnp.zeros(20))
    algorithm = Alternating(ImplicitDifferentiation(both, Dense()), optax.adam(0.2))
    with pytest.warns(OverTuningWarning, match="20 hyperparameters"):
        result = run(
            over_tasks(one, single),
            algorithm,
            jnp.zeros((2, 20)),
            jnp.zeros(20),
            tasks(2, 15),
            tasks(2, 15),
            steps=60,
            every=10,
            holdout_data=unseen,
        )
    assert result.holdout_best is not None
