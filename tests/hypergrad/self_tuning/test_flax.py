"""Flax models, linen and nnx, tuned through the form for plain functions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Bounded,
    Hyperparameters,
    Perturbation,
    Positive,
    SelfTuning,
    Tuner,
    function_to_self_tuning,
)
from hypergrad.self_tuning.convert import response_spec
from hypergrad.self_tuning.gating import is_self_tuning
from hypergrad.self_tuning.regularisers import input_noise

linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

HYPERPARAMETERS = Hyperparameters(
    {"noise": Bounded(0.0, 1.0, initial=0.3), "decay": Positive(1e-2)}
)
IMAGE = (6, 6, 1)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(2, (3, 3))(x))
        return linen.Dense(3)(x.reshape(-1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.head = nnx.Linear(72, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(x.reshape(-1))


def as_linen(key):
    """A function of weights and an image, and its weights."""
    module = Linen()
    params = module.init(key, jnp.zeros(IMAGE))["params"]
    return lambda params, x: module.apply({"params": params}, x), params


def as_nnx(key):
    graph, params = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param)
    return lambda params, x: nnx.merge(graph, params)(x), params


@pytest.fixture(params=[as_linen, as_nnx], ids=["linen", "nnx"])
def flax(request, key):
    apply, params = request.param(key)
    return apply, jax.tree.map(lambda a: a.astype(float), params)


def inner(model, hparams, batch, key):
    images, labels = batch
    values = HYPERPARAMETERS.values(hparams)
    scores = jax.vmap(model)(input_noise(images, values["noise"], key))
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
    return loss + values["decay"] * model.squared_norm()


def outer(model, hparams, batch, key):
    scores = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


def test_the_response_is_that_of_dense_and_convolutional_layers(flax, key):
    apply, params = flax
    hparams = HYPERPARAMETERS.initial()
    model = function_to_self_tuning(apply, params, hparams, key=key)
    x = jax.random.normal(key, IMAGE)
    np.testing.assert_allclose(model(x), apply(params, x), rtol=1e-10)
    leaves = jax.tree.leaves(response_spec(model))
    # Kernels have a response and a gate, biases a gate.
    assert sum(leaves) == 6
    e = jnp.array([0.3, -0.2])
    weights, tree = jax.tree.flatten(model)
    weights = [w + 0.1 if spec else w for w, spec in zip(weights, leaves, strict=True)]
    model = jax.tree.unflatten(tree, weights)
    there = model.at(e).fold().params
    assert jax.tree.structure(there) == jax.tree.structure(params)
    kernels = [a for a in jax.tree.leaves(params) if a.ndim > 1]
    assert sorted(a.ndim for a in kernels) == [2, 4]
    np.testing.assert_allclose(model.at(e)(x), apply(there, x), rtol=1e-10)
    # One gate for each output unit or channel, which is the last axis in Flax.
    moved = jax.tree.map(jnp.subtract, there, params)
    nodes = [
        n
        for n in jax.tree.leaves(model.model.params, is_leaf=is_self_tuning)
        if n.response is not None
    ]
    for node in nodes:
        change = next(a for a in jax.tree.leaves(moved) if a.shape == node.response.shape)
        np.testing.assert_allclose(change, node.response * (node.gate @ e), atol=1e-12)


@pytest.mark.slow
def test_flax_models_are_tuned_while_they_are_trained(flax, key):
    apply, params = flax
    hparams = HYPERPARAMETERS.initial()
    model = function_to_self_tuning(apply, params, hparams, key=key)
    labels = jnp.arange(24) % 3
    bright = jnp.repeat(jax.nn.one_hot(labels, 3), 2, axis=1)[:, :, None, None]
    images = bright + 0.3 * jax.random.normal(key, (24, *IMAGE))
    train, valid = (images[:16], labels[:16]), (images[16:], labels[16:])
    tuner = Tuner(
        BilevelProblem(inner, outer, stochastic=True),
        SelfTuning(optax.adam(1e-2), perturbation=Perturbation(0.3), groups=2),
        optimizer=optax.adam(3e-2),
        warmup=10,
    )
    state = tuner.init(model, hparams, train, key=key)
    before = outer(model, hparams, valid, None)
    state, schedule = tuner.run(state, [(train, valid)] * 40, values=HYPERPARAMETERS.values)
    assert outer(state.estimator.params, hparams, valid, None) < before
    assert np.ptp(schedule.values["noise"]) > 0.01
    trained = state.estimator.params.fold().params
    np.testing.assert_allclose(
        apply(trained, images[0]), state.estimator.params(images[0]), rtol=1e-9
    )
