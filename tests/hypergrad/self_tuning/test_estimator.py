"""The self-tuning estimator: bias of STN, exactness of Delta-STN, failure and bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes

from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Perturbation,
    SelfTuning,
    function_to_self_tuning,
    gating,
    layers,
    squared_norm,
    to_self_tuning,
)

# Ridge regression with one log-penalty.
LAM = jnp.array(-1.0)


def predict(model, x):
    return jax.vmap(model)(x)


RIDGE = BilevelProblem(
    inner=lambda m, lam, b: (
        0.5 * jnp.mean((predict(m, b[0]) - b[1]) ** 2) + 0.5 * jnp.exp(lam) * m.squared_norm()
    ),
    outer=lambda m, lam, b: 0.5 * jnp.mean((predict(m, b[0]) - b[1]) ** 2),
)


@pytest.fixture(scope="module")
def ridge():
    """Diabetes, standardised: training batch, validation batch, solution, response, gradient."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    (x, x_val), (y, y_val) = np.split(x, [300]), np.split(y, [300])
    hessian = x.T @ x / len(x) + np.exp(-1.0) * np.eye(x.shape[1])
    weights = np.linalg.solve(hessian, x.T @ y / len(x))
    response = -np.exp(-1.0) * np.linalg.solve(hessian, weights)
    outer = x_val.T @ (x_val @ weights - y_val) / len(x_val)
    batches = [(jnp.asarray(a), jnp.asarray(b)) for a, b in ((x, y), (x_val, y_val))]
    return *batches, weights, response, outer @ response


def linear(key):
    return to_self_tuning(eqx.nn.Linear(10, "scalar", use_bias=False, key=key), LAM, key=key)


def trained(estimator, batch, key):
    state = estimator.init(RIDGE, linear(key), LAM, batch, key=key)
    return estimator.fit(RIDGE, state, LAM, batch)[0]


def bias(state, weights):
    """Relative error of the weights at the current hyperparameters."""
    here = state.params.fold().weight[0]
    return np.linalg.norm(here - weights) / np.linalg.norm(weights)


def test_stn_is_biased_where_delta_stn_is_not(ridge, key):
    batch, _, weights, _, _ = ridge
    decay = optax.cosine_decay_schedule(1.0, 3000)
    biases = {}
    for centred in (False, True):
        estimator = SelfTuning(
            optax.chain(optax.sgd(0.15, momentum=0.9), optax.scale_by_schedule(decay)),
            perturbation=Perturbation(1.0),
            centred=centred,
            steps=3000,
        )
        biases[centred] = bias(trained(estimator, batch, key), weights)
    assert biases[False] > 0.02
    assert biases[True] < 1e-6


def test_response_and_hypergradient_of_ridge(ridge, key):
    batch, valid, _, response, gradient = ridge
    estimator = SelfTuning(
        optax.adam(optax.cosine_decay_schedule(2e-2, 2000)),
        perturbation=Perturbation(0.1),
        # One perturbation a step: on the whole data its gradient noise vanishes at the optimum.
        groups=1,
        steps=2000,
    )
    state = trained(estimator, batch, key)
    model = state.params
    learned = model.at(jnp.ones(1)).fold().weight[0] - model.fold().weight[0]
    np.testing.assert_allclose(learned, response, atol=0.05 * np.max(np.abs(response)))
    result = estimator.hypergradient(RIDGE, state, LAM, batch, valid)
    np.testing.assert_allclose(result.grad, gradient, rtol=0.05)
    assert result.info.inner_residual < 1e-3
    assert jnp.isnan(result.info.error)
    # The predicted outer loss, away from the centre, is that of the predicted weights.
    moved = estimator.hypergradient(RIDGE, state, LAM + 0.1, batch, valid)
    there = RIDGE.outer(model.at(jnp.full(1, 0.1)), LAM, valid)
    np.testing.assert_allclose(moved.value, there, rtol=1e-9)


def test_linear_network_with_penalised_jacobian_is_exact(key):
    """Two linear layers and an L2 penalty on the Jacobian of the output by the input.

    With `Q₀` the principal axes and `s₀` the least-squares solution along them, the best response
    is `Q*(λ) = sigmoid(λ v + c) ⊙_row Q₀`, `s* = s₀` (MacKay et al. 2019, theorem 2); here
    `v = −1` and `c = 2 log(singular values)`.
    """
    x = jax.random.normal(key, (40, 5)) * jnp.array([3.0, 2.0, 1.0, 0.5, 0.2])
    y = x @ jnp.array([1.0, -1.0, 0.5, 2.0, 1.0]) + jnp.sin(jnp.arange(40.0))
    _, values, axes = jnp.linalg.svd(x, full_matrices=False)
    top = jnp.linalg.lstsq(x @ axes.T, y)[0]

    def rows(lam):
        return jax.nn.sigmoid(2 * jnp.log(values) - lam)

    def ridge(lam):
        return jnp.linalg.solve(x.T @ x + jnp.exp(lam) * jnp.eye(5), x.T @ y)

    lam, step = 0.7, 1.9
    np.testing.assert_allclose(top @ (rows(lam)[:, None] * axes), ridge(lam), rtol=1e-11)

    hidden = eqx.nn.Linear(5, 5, use_bias=False, key=key)
    hidden = eqx.tree_at(lambda m: m.weight, hidden, rows(lam)[:, None] * axes)
    node = layers.SelfTuningLinear(hidden, 1, key=key)
    slope = jax.jacobian(rows)(lam)[:, None]
    node = eqx.tree_at(lambda n: (n.response[0].weight, n.gate), node, (axes, slope))
    # To first order the structured response is the closed form's derivative ...
    change = gating.gated(node, jnp.ones(1), False).fold().weight - hidden.weight
    np.testing.assert_allclose(top @ change, jax.jacobian(ridge)(lam), rtol=1e-10)
    # ... and with the gates of the theorem it is the retrained network, however far.
    gates = rows(lam + step) - rows(lam)
    node = eqx.tree_at(lambda n: n.gate, node, gates[:, None])
    far = gating.gated(node, jnp.ones(1), False)
    np.testing.assert_allclose(jax.vmap(far)(x) @ top, x @ ridge(lam + step), rtol=1e-10)


class Small(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 4, key=a)
        self.second = eqx.nn.Linear(4, 2, key=b)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


HPARAMS = {"decay": jnp.array(-2.0), "noise": jnp.array([0.1, 0.2])}


def small_inner(model, hparams, batch, key):
    x, y = batch
    noise = jnp.sum(hparams["noise"]) * jax.random.normal(key, x.shape)
    fit = jnp.mean((predict(model, x + noise) - y) ** 2)
    return fit + jnp.exp(hparams["decay"]) * model.squared_norm()


SMALL = BilevelProblem(
    small_inner, lambda m, h, b, k: jnp.mean((predict(m, b[0]) - b[1]) ** 2), stochastic=True
)
BATCH = (jnp.linspace(-1, 1, 24).reshape(8, 3), jnp.linspace(0, 1, 16).reshape(8, 2))


@pytest.mark.parametrize("centred", [True, False])
def test_three_verbs_on_a_network(centred, key):
    estimator = SelfTuning(optax.adam(0.05), centred=centred, groups=4, steps=40)
    model = to_self_tuning(Small(key), HPARAMS, key=key)
    state = estimator.init(SMALL, model, HPARAMS, BATCH, key=key)
    before = estimator.hypergradient(SMALL, state, HPARAMS, BATCH, BATCH)
    assert before.info.error == jnp.inf
    np.testing.assert_array_equal(before.grad["noise"], 0.0)
    state, info = estimator.fit(SMALL, state, HPARAMS, BATCH)
    assert int(info.iterations) == int(state.steps) == 40
    after = estimator.hypergradient(SMALL, state, HPARAMS, BATCH, BATCH)
    assert after.value < before.value
    assert jax.tree.structure(after.grad) == jax.tree.structure(HPARAMS)
    assert jnp.linalg.norm(after.grad["noise"]) > 0
    # `state.params` is the model at the hyperparameters: the outer loss is its own.
    np.testing.assert_allclose(
        after.value, SMALL.outer(after.state.params, HPARAMS, BATCH, None), rtol=1e-9
    )
    # Far from where the response was trained it says so.
    far = {"decay": jnp.array(-2.0), "noise": jnp.array([0.1, 2.2])}
    assert estimator.hypergradient(SMALL, state, far, BATCH, BATCH).info.error == jnp.inf


def test_pytree_form_takes_the_same_steps(key):
    """The response of a plain function is trained as that of the layers."""
    layer = eqx.nn.Linear(10, "scalar", use_bias=False, key=key)
    model = function_to_self_tuning(
        lambda w, x: jnp.squeeze(w @ x), layer.weight, LAM, key=key, output_axis=0
    )
    same = to_self_tuning(layer, LAM, key=key)
    response = model.model.params.response
    same = eqx.tree_at(lambda m: m.model.response[0].weight, same, response)
    batch = (jax.random.normal(key, (6, 10)), jnp.arange(6.0))
    estimator = SelfTuning(optax.sgd(0.1), groups=3, steps=5)
    ends = []
    for start in (model, same):
        state = estimator.init(RIDGE, start, LAM, batch, key=key)
        state, _ = estimator.fit(RIDGE, state, LAM, batch)
        ends.append(estimator.hypergradient(RIDGE, state, LAM, batch, batch).grad)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-10)


def test_scale_follows_the_entropy_weight(key):
    model = to_self_tuning(Small(key), HPARAMS, key=key)
    perturbation = Perturbation(0.5, optimizer=optax.adam(0.05), entropy=jnp.array(0.0))
    estimator = SelfTuning(optax.adam(0.02), perturbation=perturbation, groups=4)
    state = estimator.init(SMALL, model, HPARAMS, BATCH, key=key)
    for _ in range(5):
        state, _ = estimator.fit(SMALL, state, HPARAMS, BATCH)
    wide = eqx.tree_at(lambda e: e.perturbation.entropy, estimator, jnp.array(10.0))
    grown = wide.hypergradient(SMALL, state, HPARAMS, BATCH, BATCH).state
    assert jnp.all(perturbation.value(grown.perturbation) > 0.51)


def test_a_loss_that_is_not_finite_is_rejected(key):
    estimator = SelfTuning(optax.adam(0.02), groups=4)
    model = to_self_tuning(Small(key), HPARAMS, key=key)
    state = estimator.init(SMALL, model, HPARAMS, BATCH, key=key)
    state, _ = estimator.fit(SMALL, state, HPARAMS, BATCH)
    bad = (BATCH[0].at[0, 0].set(jnp.nan), BATCH[1])
    after, info = estimator.fit(SMALL, state, HPARAMS, bad)
    assert int(info.iterations) == 0
    assert eqx.tree_equal(after.params, state.params)
    np.testing.assert_allclose(estimator.perturbation.value(after.perturbation), 0.25)
    result = estimator.hypergradient(SMALL, after, HPARAMS, BATCH, BATCH)
    assert bool(result.info.breakdown)
    assert result.info.error == jnp.inf


def test_bad_input(key):
    model = to_self_tuning(Small(key), HPARAMS, key=key)
    for match, keyword in (
        ("steps: expected an integer >= 1, received 0", {"steps": 0}),
        ("groups: expected an integer >= 1, received 0", {"groups": 0}),
        (r"`response_part`: expected a number in \(0, 1\], received 0", {"response_part": 0.0}),
    ):
        with pytest.raises(ValueError, match=match):
            SelfTuning(**keyword)
    estimator = SelfTuning(groups=3)
    with pytest.raises(ValueError, match="hold no self-tuning model; convert one"):
        estimator.init(SMALL, Small(key), HPARAMS, BATCH)
    with pytest.raises(ValueError, match="converted for 3 hyperparameters; `hparams` holds 1"):
        estimator.init(SMALL, model, {"decay": jnp.array(0.0)}, BATCH)
    with pytest.raises(ValueError, match=r"'holes' has dtype int.*Discrete\(low, high\)"):
        estimator.init(SMALL, model, {"holes": jnp.array(2), **HPARAMS}, BATCH)
    state = estimator.init(SMALL, model, HPARAMS, BATCH)
    with pytest.raises(ValueError, match="splits into groups=3, received 8 examples"):
        estimator.fit(SMALL, state, HPARAMS, BATCH)
    with pytest.raises(ValueError, match=r"leading axis of examples .*received lengths \[6, 8\]"):
        estimator.fit(SMALL, state, HPARAMS, (BATCH[0], BATCH[1][:6]))


def test_layers_share_one_penalty_definition(key):
    network = Small(key)
    expected = jnp.sum(network.first.weight**2) + jnp.sum(network.second.weight**2)
    np.testing.assert_allclose(squared_norm(network), expected)


@pytest.mark.parametrize("centred", [True, False])
def test_what_the_inner_loss_does_not_read_gets_the_direct_derivative_alone(key, centred):
    x = jax.random.normal(key, (12, 3))
    batch = (x, x @ jnp.arange(3.0))

    def loss(model, h, batch):
        return jnp.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2)

    problem = BilevelProblem(
        lambda m, h, b: loss(m, h, b) + jnp.exp(h["l2"]) * m.squared_norm(),
        lambda m, h, b: loss(m, h, b) + 2 * h["direct"],
    )
    hparams = {"direct": jnp.ones(()), "l2": jnp.array(-1.0), "typo": jnp.ones(3)}
    estimator = SelfTuning(
        optimizer=optax.adam(1e-2), perturbation=Perturbation(0.3), centred=centred, steps=40
    )
    model = to_self_tuning(eqx.nn.Linear(3, 1, key=key), hparams, key=key)
    state = estimator.init(problem, model, hparams, batch, key=key)
    state, _ = estimator.fit(problem, state, hparams, batch)
    for point in (hparams, {**hparams, "typo": jnp.full(3, 50.0)}):
        out = estimator.hypergradient(problem, state, point, batch, batch)
        np.testing.assert_array_equal(out.grad["typo"], 0.0)
        assert out.grad["direct"] == 2.0
        assert out.grad["l2"] != 0
        assert jnp.isnan(out.info.error)
