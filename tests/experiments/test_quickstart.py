"""The quickstart's training, and the same search on each engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.quickstart as quickstart
from hypergrad import ImplicitDifferentiation, Newton, check_hypergradient


@pytest.fixture(scope="module")
def training():
    return quickstart.Training(seed=0)


def searched(engine, method, training, trials):
    seen = []
    values, best = quickstart.ENGINES[engine](method, training, trials, 3, seen.append)
    assert seen == values
    assert len(values) == trials
    return values, best


def test_the_hypergradient_agrees_with_finite_differences(training):
    train, validation, _ = training.parts["standardise"]
    check = check_hypergradient(
        quickstart.PROBLEM,
        {"weights": jnp.zeros((64, 10)), "bias": jnp.zeros(10)},
        {"l2": jnp.geomspace(1e-3, 1.0, 64)},
        train,
        validation,
        estimator=ImplicitDifferentiation(Newton()),
        directions=1,
    )
    assert check.ok, str(check)


def test_the_penalty_is_on_the_weights_that_classify(training):
    config = {"l2": np.full(64, 0.1), "scaling": "to unit range"}
    batch = training.parts[config["scaling"]][0]
    params = training(config).state.params
    w = quickstart.weights(params, jnp.asarray(config["l2"]), batch[2])

    def plain(w, bias):
        scores = jax.nn.log_softmax(batch[0] @ w + bias)
        loss = -jnp.mean(jnp.take_along_axis(scores, batch[1][:, None], axis=1))
        return loss + 0.5 * jnp.sum(0.1 * w**2) + 5e-5 * jnp.sum(bias**2)

    slopes = jax.grad(plain, argnums=(0, 1))(w, params["bias"])
    assert max(float(jnp.max(jnp.abs(slope))) for slope in slopes) < 1e-3


def test_local_and_optuna_give_the_same_trainings(training):
    for method in quickstart.SEARCHERS:
        local, best = searched("local", method, training, 3)
        optuna, chosen = searched("optuna", method, training, 3)
        assert local == optuna
        np.testing.assert_array_equal(best["l2"], chosen["l2"])
        assert best["scaling"] == chosen["scaling"]


def test_tpe_begins_in_the_middle_where_it_is_told_to(training):
    values, _ = searched("optuna", quickstart.TPE_MIDDLE, training, 2)
    gradient, _ = searched("local", "hypergradient", training, 1)
    assert values[0] == gradient[0] == float(training(quickstart.MIDDLE).value)
    assert searched("optuna", quickstart.TPE, training, 2)[0] != values


@pytest.mark.slow
def test_ray_gives_the_same_trainings(training):
    local, best = searched("local", "hypergradient", training, 3)
    ray, chosen = searched("ray", "hypergradient", training, 3)
    np.testing.assert_allclose(ray, local, rtol=1e-4)
    np.testing.assert_allclose(chosen["l2"], best["l2"], rtol=1e-2)
