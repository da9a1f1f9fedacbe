"""Hypernetworks: closed forms, the digits curve of the paper's kind, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from hypergrad.hypernetwork import Hypernetwork, Normal, Uniform
from hypergrad.problem import BilevelProblem
from hypergrad.response.perturbation import Perturbation

# min over w of ½‖w − s ⊙ λ‖² has the response s ⊙ λ, which a linear hypernetwork can represent.
SLOPE = jnp.array([1.0, -2.0, 0.5])
LINEAR = BilevelProblem(
    inner=lambda w, lam, batch: 0.5 * jnp.sum((w["w"] - SLOPE * lam["l"]) ** 2),
    outer=lambda w, lam, batch: 0.5 * jnp.sum((w["w"] - 1.0) ** 2),
)
POINT = {"l": jnp.array([0.5, -0.3, 1.0])}
START = {"w": jnp.zeros(3)}

# Ridge regression with one log-penalty, three rows; its hypergradient at −1 is 0.08721369.
X = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
Y = jnp.array([1.0, 2.0, 2.0])
X_VAL = jnp.array([[1.0, 2.0], [2.0, -1.0]])
Y_VAL = jnp.array([2.5, 1.0])
RIDGE = BilevelProblem(
    inner=lambda w, lam, b: (
        0.5 * jnp.mean((b[0] @ w - b[1]) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)
    ),
    outer=lambda w, lam, b: 0.5 * jnp.mean((b[0] @ w - b[1]) ** 2),
)


def train(hypernetwork, problem, params, hparams, batch, fits, key):
    state = hypernetwork.init(problem, params, hparams, batch, key=key)
    for _ in range(fits):
        state, info = hypernetwork.fit(problem, state, hparams, batch)
    return state, info


@pytest.mark.parametrize(("hidden", "bottleneck"), [((), None), ((8,), 2)])
def test_starts_as_the_given_parameters_everywhere(key, hidden, bottleneck):
    params = {"w": jnp.array([3.0, 1.0, 2.0]), "act": jnp.tanh}
    hypernetwork = Hypernetwork(Normal(0.0, 1.5), hidden=hidden, bottleneck=bottleneck)
    state = hypernetwork.init(LINEAR, params, POINT, None, key=key)
    elsewhere = {"l": jnp.array([-5.0, 2.0, 9.0])}
    response = hypernetwork.response(state, elsewhere)
    assert jnp.array_equal(response["w"], params["w"])
    assert response["act"] is jnp.tanh


def test_recovers_a_linear_response_and_its_hypergradient(key):
    hypernetwork = Hypernetwork(Perturbation(0.5), steps=1000, optimizer=optax.sgd(0.2), samples=4)
    state, info = train(hypernetwork, LINEAR, START, POINT, None, 1, key)
    result = hypernetwork.hypergradient(LINEAR, state, POINT, None, None)
    truth = (SLOPE * POINT["l"] - 1) * SLOPE
    np.testing.assert_allclose(result.grad["l"], truth, rtol=1e-6)
    np.testing.assert_allclose(result.state.params["w"], SLOPE * POINT["l"], rtol=1e-6)
    assert info.residual < 1e-6
    assert result.info.inner_residual < 1e-6
    assert int(info.iterations) == 1000
    assert jnp.isnan(result.info.error)
    # The response holds away from the centre as well, where hypergradient was not asked.
    other = {"l": jnp.array([2.0, 2.0, 2.0])}
    np.testing.assert_allclose(hypernetwork.response(state, other)["w"], 2 * SLOPE, rtol=1e-5)


def test_ridge_hypergradient_against_the_closed_form(key):
    hypernetwork = Hypernetwork(
        Perturbation(0.05),
        steps=3000,
        samples=4,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-2, 3000)),
    )
    state, _ = train(hypernetwork, RIDGE, jnp.zeros(2), jnp.array(-1.0), (X, Y), 1, key)
    result = hypernetwork.hypergradient(RIDGE, state, jnp.array(-1.0), (X, Y), (X_VAL, Y_VAL))
    np.testing.assert_allclose(result.value, 0.06342753432645731, rtol=1e-2)
    np.testing.assert_allclose(result.grad, 0.08721369186448863, rtol=2e-2)


def test_direct_term_and_partial_hparams(key):
    problem = BilevelProblem(
        inner=lambda w, lam, b: 0.5 * jnp.sum((w - lam["a"]) ** 2),
        outer=lambda w, lam, b: 0.5 * jnp.sum(w**2) + 3.0 * lam["direct"] * lam["count"],
    )
    hparams = {"a": jnp.array(1.0), "direct": jnp.array(0.2), "count": 2}
    hypernetwork = Hypernetwork(Perturbation(0.5), steps=300, optimizer=optax.sgd(0.3))
    state, _ = train(hypernetwork, problem, jnp.zeros(()), hparams, None, 1, key)
    grad = hypernetwork.hypergradient(problem, state, hparams, None, None).grad
    assert grad["count"] is None
    np.testing.assert_allclose(grad["direct"], 6.0, rtol=1e-5)
    np.testing.assert_allclose(grad["a"], 1.0, rtol=1e-5)


def digits():
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))[:360]
    features, labels = jnp.asarray(features[order] / 16), jnp.asarray(labels[order])
    return (features[:60], labels[:60]), (features[60:], labels[60:])


@jax.jit
def score(w, batch):
    return cross_entropy(w, batch)


def cross_entropy(w, batch):
    features, labels = batch
    scores = jax.nn.log_softmax(features @ w["w"] + w["b"])
    return -jnp.mean(scores[jnp.arange(len(labels)), labels])


DIGITS = BilevelProblem(
    inner=lambda w, lam, b: (
        cross_entropy(w, b) + jnp.exp(lam) * (jnp.sum(w["w"] ** 2) + jnp.sum(w["b"] ** 2))
    ),
    outer=lambda w, lam, b: cross_entropy(w, b),
)
SOFTMAX = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
GRID = np.arange(-9.0, -2.0)


@jax.jit
def retrain(lam, batch):
    """Softmax regression to its optimum, by L-BFGS."""
    solver = optax.lbfgs()

    def objective(w):
        return DIGITS.inner(w, lam, batch)

    def step(carry, _):
        w, state = carry
        value, grad = optax.value_and_grad_from_state(objective)(w, state=state)
        updates, state = solver.update(grad, state, w, value=value, grad=grad, value_fn=objective)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (SOFTMAX, solver.init(SOFTMAX)), None, length=150)[0][0]


def test_global_curve_on_digits(key):
    train_batch, valid_batch = digits()
    hypernetwork = Hypernetwork(
        Uniform(-10.0, -2.0),
        hidden=(50,),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 2000)),
        steps=2000,
    )
    state, _ = train(hypernetwork, DIGITS, SOFTMAX, jnp.array(-6.0), train_batch, 1, key)
    points = [jnp.array(point) for point in GRID]
    true = np.array([score(retrain(p, train_batch), valid_batch) for p in points])
    predicted = np.array([score(hypernetwork.response(state, p), valid_batch) for p in points])
    assert np.max(np.abs(true - predicted)) < 0.05
    lam, best = jnp.array(-4.0), GRID[np.argmin(true)]
    for _ in range(40):
        result = hypernetwork.hypergradient(DIGITS, state, lam, train_batch, valid_batch)
        lam = lam - 3.0 * result.grad
        assert result.info.error != jnp.inf
    assert abs(float(lam) - best) < 1.0


def test_local_descends_from_two_starts_to_one_place():
    train_batch, valid_batch = digits()
    hypernetwork = Hypernetwork(Perturbation(0.1), steps=20)
    optimizer = optax.adam(0.2)

    @eqx.filter_jit
    def descend(start):
        state = hypernetwork.init(DIGITS, SOFTMAX, start, train_batch)

        def step(carry, _):
            lam, state, moments = carry
            state, _ = hypernetwork.fit(DIGITS, state, lam, train_batch)
            result = hypernetwork.hypergradient(DIGITS, state, lam, train_batch, valid_batch)
            updates, moments = optimizer.update(result.grad, moments)
            return (lam + updates, result.state, moments), lam

        return jax.lax.scan(step, (start, state, optimizer.init(start)), None, length=120)[1]

    paths = [np.asarray(descend(jnp.array(start))) for start in (-1.0, 0.0)]
    ends = [path[-20:].mean() for path in paths]
    true = [score(retrain(jnp.array(p), train_batch), valid_batch) for p in GRID]
    assert abs(ends[0] - ends[1]) < 0.5
    assert abs(ends[0] - GRID[int(np.argmin(true))]) < 1.0


def test_a_local_network_with_hidden_layers_follows_the_hyperparameters(key):
    """It starts five standard deviations from the optimum, where the response is not linear."""
    problem = BilevelProblem(
        inner=lambda w, lam, b: 0.5 * jnp.sum((w - jnp.sin(lam)) ** 2),
        outer=lambda w, lam, b: 0.5 * (w[0] - 0.2) ** 2,
    )
    hypernetwork = Hypernetwork(Perturbation(0.2), hidden=(8,), steps=30, samples=4)

    @jax.jit
    def descend(lam):
        state = hypernetwork.init(problem, jnp.zeros(1), lam, None, key=key)

        def step(carry, _):
            lam, state = carry
            state, _ = hypernetwork.fit(problem, state, lam, None)
            out = hypernetwork.hypergradient(problem, state, lam, None, None)
            return (lam - 0.3 * out.grad, out.state), (out.info.error, out.grad, lam)

        return jax.lax.scan(step, (lam, state), None, length=60)

    (lam, state), (errors, grads, path) = descend(jnp.array([1.2]))
    assert not jnp.any(jnp.isinf(errors))
    np.testing.assert_allclose(lam, jnp.arcsin(0.2), atol=0.03)
    np.testing.assert_allclose(state.sampling.centre, path[-1])
    truth = (jnp.sin(path) - 0.2) * jnp.cos(path)
    np.testing.assert_allclose(grads[20:], truth[20:], atol=0.05)


@pytest.mark.parametrize("shape", [{}, {"hidden": (6,)}])
@pytest.mark.parametrize("distribution", [Perturbation(0.3), Normal()])
def test_what_the_inner_loss_does_not_read_gets_the_direct_derivative_alone(
    key, distribution, shape
):
    hparams = {"a": jnp.ones(2), "direct": jnp.ones(()), "typo": jnp.zeros(3)}
    problem = BilevelProblem(
        inner=lambda w, h, b: jnp.sum((w - h["a"]) ** 2),
        outer=lambda w, h, b: jnp.sum(w**2) + 3 * h["direct"],
    )
    hypernetwork = Hypernetwork(distribution, steps=50, **shape)
    state, _ = train(hypernetwork, problem, jnp.zeros(2), hparams, None, 1, key)
    far = {**hparams, "typo": jnp.full(3, 100.0)}
    for point in (hparams, far):
        out = hypernetwork.hypergradient(problem, state, point, None, None)
        np.testing.assert_array_equal(out.grad["typo"], 0.0)
        assert out.grad["direct"] == 3.0
        assert jnp.all(out.grad["a"] != 0)
        assert jnp.isnan(out.info.error)


SHAPES = [{}, {"bottleneck": 2}, {"hidden": (6,)}, {"hidden": (6, 4), "bottleneck": 2}]


@pytest.mark.parametrize("shape", SHAPES)
def test_recentring_leaves_the_function_unchanged(key, shape):
    hypernetwork = Hypernetwork(Perturbation(0.5), steps=20, **shape)
    state, _ = train(hypernetwork, LINEAR, START, POINT, None, 3, key)
    moved = {"l": POINT["l"] + 2.0}
    frozen = Hypernetwork(Perturbation(0.5), steps=1, optimizer=optax.sgd(0.0), **shape)
    state = eqx.tree_at(
        lambda s: s.optimizer, state, frozen.optimizer.init(eqx.filter(state.network, eqx.is_array))
    )
    after, _ = frozen.fit(LINEAR, state, moved, None)
    np.testing.assert_allclose(after.sampling.centre, moved["l"])
    assert frozen.inside(after, moved)
    assert not frozen.inside(state, moved)
    for where in (POINT, moved):
        np.testing.assert_allclose(
            frozen.response(state, where)["w"], frozen.response(after, where)["w"], rtol=1e-12
        )


def test_size_is_stated_and_limited():
    many, few = jnp.zeros(7850), jnp.zeros(())
    weights = {"w": jnp.zeros((784, 10)), "b": jnp.zeros(10)}
    # The sizes given in the paper for its three networks.
    assert Hypernetwork(Normal(), hidden=(50,)).size(weights, few) == 400_450
    assert Hypernetwork().size(weights, few) == 15_700
    assert Hypernetwork(bottleneck=10).size(weights, many) == 164_860
    with pytest.raises(ValueError, match=r"61630350 weights.*max_size=50000000.*bottleneck"):
        Hypernetwork().init(LINEAR, weights, many, None)


def test_bottleneck_of_many_hyperparameters(key):
    size = 400
    target = jax.random.normal(key, (size,))
    problem = BilevelProblem(
        inner=lambda w, lam, b: (
            0.5 * jnp.sum((w - target) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)
        ),
        outer=lambda w, lam, b: 0.5 * jnp.sum(w**2),
    )
    hparams = jnp.zeros(size)
    hypernetwork = Hypernetwork(Perturbation(0.3), bottleneck=10, steps=400)
    assert hypernetwork.size(hparams, hparams) == 10 * (size + 1) + 11 * size
    state, info = train(hypernetwork, problem, jnp.zeros(size), hparams, None, 1, key)
    np.testing.assert_allclose(state.params, target / 2, atol=0.1)
    assert info.residual < 0.1


def test_extrapolation_and_untrained_networks_are_flagged(key):
    for distribution, inside, outside in (
        (Normal({"l": 0.0}, {"l": jnp.full(3, 0.4)}), 0.0, 1.3),
        (Uniform(-1.0, jnp.array(1.0)), 0.9, 1.1),
        (Perturbation(0.3), 0.8, 1.0),
    ):
        hypernetwork = Hypernetwork(distribution, steps=5)
        centre = {"l": jnp.zeros(3)}
        state = hypernetwork.init(LINEAR, START, centre, None, key=key)
        for value, expected in ((inside, True), (outside, False)):
            point = {"l": jnp.zeros(3).at[1].set(value)}
            assert bool(hypernetwork.inside(state, point)) is expected
    info = hypernetwork.hypergradient(LINEAR, state, centre, None, None).info
    assert info.error == jnp.inf
    state, _ = hypernetwork.fit(LINEAR, state, centre, None)
    info = hypernetwork.hypergradient(LINEAR, state, centre, None, None).info
    assert jnp.isnan(info.error)
    info = hypernetwork.hypergradient(LINEAR, state, point, None, None).info
    assert info.error == jnp.inf


def test_many_small_moves_leave_the_directions_of_a_bottleneck(key):
    """The sum of many moves is far where each is small: along what the network looks at."""
    lam, w = jnp.zeros(400), jnp.zeros(3)
    problem = BilevelProblem(
        lambda w, lam, b: jnp.sum((w - jnp.mean(lam)) ** 2), lambda w, lam, b: jnp.sum(w**2)
    )
    hypernetwork = Hypernetwork(Perturbation(0.5), bottleneck=2)
    state = hypernetwork.init(problem, w, lam, (), key=key)
    seen = state.network.trunk[0][0][0]
    along = 0.5 * seen / jnp.linalg.norm(seen)
    across = 0.5 * jnp.ones(400).at[::2].set(-1.0)
    across -= seen * (seen @ across) / (seen @ seen)
    assert hypernetwork.inside(state, lam + 2 * along)
    assert jnp.all(jnp.abs(4 * along) < 0.5)
    assert not hypernetwork.inside(state, lam + 4 * along)
    other = state.network.trunk[0][0][1]
    across -= other * (other @ across) / (other @ other)
    assert hypernetwork.inside(state, lam + across)


def test_learned_scale_grows_with_entropy_and_shrinks_without():
    """The quadratic outer loss prefers a small scale, the entropy term a large one."""
    perturbation = Perturbation(0.3, optimizer=optax.adam(0.05), entropy=jnp.array(0.0))
    hypernetwork = Hypernetwork(perturbation, steps=20, samples=8)
    ends = []
    for entropy in (0.0, 10.0):
        hypernetwork = eqx.tree_at(
            lambda h: h.distribution.entropy, hypernetwork, jnp.array(entropy)
        )
        state = hypernetwork.init(LINEAR, START, POINT, None)
        for _ in range(20):
            state, _ = hypernetwork.fit(LINEAR, state, POINT, None)
            state = hypernetwork.hypergradient(LINEAR, state, POINT, None, None).state
        ends.append(perturbation.value(state.sampling.scale))
    assert jnp.all(ends[0] < 0.25)
    assert jnp.all(ends[1] > 0.4)


def test_losses_that_are_not_finite_are_contained(key):
    problem = BilevelProblem(
        inner=lambda w, lam, b: jnp.sum((w - lam) ** 2) * b, outer=lambda w, lam, b: jnp.sum(w**2)
    )
    hypernetwork = Hypernetwork(Perturbation(0.3), steps=4)
    good, bad = jnp.array(1.0), jnp.array(jnp.nan)
    state, _ = train(hypernetwork, problem, jnp.ones(2), jnp.ones(2), good, 2, key)
    broken, info = hypernetwork.fit(problem, state, jnp.ones(2), bad)
    assert int(info.iterations) == 0
    assert int(broken.failures) == 4
    assert eqx.tree_equal(broken.network, state.network)
    recovered, info = hypernetwork.fit(problem, broken, jnp.ones(2), good)
    assert int(info.iterations) == 4
    for _ in range(3):
        recovered, _ = hypernetwork.fit(problem, recovered, jnp.ones(2), bad)
    given_up, info = hypernetwork.fit(problem, recovered, jnp.ones(2), good)
    assert int(info.iterations) == 0
    result = hypernetwork.hypergradient(problem, given_up, jnp.ones(2), good, None)
    assert bool(result.info.breakdown)
    assert result.info.error == jnp.inf
    assert jnp.all(jnp.isfinite(result.grad))


def test_same_key_same_network_and_stochastic_problems(key):
    problem = BilevelProblem(
        inner=lambda w, lam, b, k: jnp.sum((w - lam + 0.1 * jax.random.normal(k, (2,))) ** 2),
        outer=lambda w, lam, b, k: jnp.sum(w**2) + jax.random.normal(k),
        stochastic=True,
    )
    hypernetwork = Hypernetwork(steps=3)
    runs = [
        train(hypernetwork, problem, jnp.ones(2), jnp.ones(2), None, 2, jax.random.key(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert eqx.tree_equal(runs[0].params, runs[1].params)
    assert not eqx.tree_equal(runs[0].params, runs[2].params)


def test_vmap_over_hyperparameters(key):
    hypernetwork = Hypernetwork(Perturbation(0.5), steps=30)

    def run(lam):
        state = hypernetwork.init(LINEAR, START, {"l": lam}, None, key=key)
        state, _ = hypernetwork.fit(LINEAR, state, {"l": lam}, None)
        return hypernetwork.hypergradient(LINEAR, state, {"l": lam}, None, None).grad["l"]

    points = jnp.stack([POINT["l"], POINT["l"] + 1.0])
    batched = jax.vmap(run)(points)
    np.testing.assert_allclose(batched, jnp.stack([run(p) for p in points]), rtol=1e-9)


def test_float32_stays_float32(key):
    hparams, params = {"l": jnp.ones(3, jnp.float32)}, {"w": jnp.zeros(3, jnp.float32)}
    problem = BilevelProblem(
        inner=lambda w, lam, b: jnp.sum((w["w"] - lam["l"]) ** 2),
        outer=lambda w, lam, b: jnp.sum(w["w"] ** 2),
    )
    hypernetwork = Hypernetwork(hidden=(4,), bottleneck=2, steps=2)
    state, _ = train(hypernetwork, problem, params, hparams, None, 1, key)
    result = hypernetwork.hypergradient(problem, state, hparams, None, None)
    assert result.grad["l"].dtype == result.value.dtype == jnp.float32
    assert result.state.params["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hypernetwork(Perturbation(0.0)), "`scale`: expected .* received 0.0"),
        (
            lambda: Hypernetwork(Perturbation(jnp.array([0.1, -1.0]))),
            "`scale`: expected a positive",
        ),
        (
            lambda: Hypernetwork(Normal(std={"a": 0.0})),
            r"Normal: `std`\['a'\]: expected a positive",
        ),
        (lambda: Hypernetwork(Uniform(1.0, 1.0)), "Uniform: `high - low`: expected a positive"),
        (lambda: Hypernetwork(steps=0), "steps: expected an integer >= 1, received 0"),
        (lambda: Hypernetwork(samples=0), "samples: expected an integer >= 1, received 0"),
        (lambda: Hypernetwork(hidden=(0,)), "hidden: expected an integer >= 1"),
        (lambda: Hypernetwork(bottleneck=0), "bottleneck: expected .* received 0"),
        (lambda: Hypernetwork(0.1), ": expected a Normal, Uniform or Perturbation, received float"),
        (lambda: Hypernetwork().init(LINEAR, START, {"l": 3}, None), "`hparams` has no floating"),
        (lambda: Hypernetwork().init(LINEAR, {"w": 1}, POINT, None), "`params` has no floating"),
        (
            lambda: Hypernetwork(Normal(mean={"x": 0.0})).init(LINEAR, START, POINT, None),
            "`mean` of the distribution must be a number or fit hparams",
        ),
        (
            lambda: Hypernetwork(Normal(mean={"l": jnp.zeros(2)})).init(LINEAR, START, POINT, None),
            r"`mean` of .* fit hparams: expected \{'l': \(3,\)\}, received \{'l': \(2,\)\}",
        ),
        (
            lambda: Hypernetwork(Perturbation(jnp.ones(2))).init(LINEAR, START, POINT, None),
            r"`scale` has shape \(2,\); expected a number or one entry for each of the 3",
        ),
        (lambda: Perturbation(9.0, optimizer=optax.sgd(0.1)), r"outside the range \[0.001, 5.0\]"),
        (lambda: Perturbation(minimum=2.0, maximum=1.0), "0 < minimum < maximum"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()
