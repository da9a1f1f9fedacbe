"""Every kind of hyperparameter that self-tuning is for is tuned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from sklearn.datasets import load_digits

from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Bounded,
    Discrete,
    Hyperparameters,
    Perturbation,
    Positive,
    SelfTuning,
    Tuner,
    regularisers,
    to_self_tuning,
)

STRENGTHS = Hyperparameters(
    {
        "dropout": Bounded(0.0, 0.9, initial=0.6, shape=(2,)),
        "noise": Bounded(0.0, 1.0, initial=0.6),
        "decay": Positive(1e-2),
        "smoothing": Bounded(0.0, 0.8, initial=0.5),
        "shift": Bounded(0.0, 4.0, initial=2.5),
        "brightness": Bounded(0.0, 1.0, initial=0.7),
        "cutout": Discrete(0, 6, initial=4),
        "holes": Discrete(0, 3, initial=2),
    }
)


class Network(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self, key):
        sizes = ((64, 48), (48, 32), (32, 10))
        self.layers = [
            eqx.nn.Linear(*size, key=k)
            for size, k in zip(sizes, jax.random.split(key, 3), strict=True)
        ]

    def __call__(self, image, rates=None, key=None):
        x = image.ravel()
        for index, layer in enumerate(self.layers[:-1]):
            x = jax.nn.relu(layer(x))
            if key is not None:
                x = regularisers.dropout(x, rates[index], jax.random.fold_in(key, index))
        return self.layers[-1](x)


def inner(model, hparams, batch, key):
    values = STRENGTHS.values(hparams)

    def one(image, label, key):
        keys = jax.random.split(key, 5)
        image = regularisers.shift(image, values["shift"], keys[0])
        image = regularisers.brightness(image, values["brightness"], keys[1])
        image = regularisers.cutout(image, values["cutout"], values["holes"], keys[2], most=3)
        image = regularisers.input_noise(image, values["noise"], keys[3])
        target = regularisers.smooth_labels(label, 10, values["smoothing"])
        return optax.softmax_cross_entropy(model(image, values["dropout"], keys[4]), target)

    losses = jax.vmap(one)(*batch, jax.random.split(key, len(batch[1])))
    return jnp.mean(losses) + values["decay"] * model.squared_norm()


def outer(model, hparams, batch, key):
    scores = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


@pytest.mark.slow
def test_every_kind_is_tuned(key):
    """A response to each is learned, its strength moves, and its values stay what they must be."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 1, 8, 8) / 16, jnp.float32)
    batch = images[:96], jnp.asarray(labels[:96])
    hparams = STRENGTHS.initial(jnp.float32)
    network = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, Network(key))
    tuner = Tuner(
        BilevelProblem(inner, outer, stochastic=True),
        SelfTuning(optax.adam(5e-3), perturbation=Perturbation(0.5)),
        optimizer=optax.adam(0.1),
        warmup=10,
    )
    state = tuner.init(to_self_tuning(network, hparams, key=key), hparams, batch, key=key)
    _, untrained = tuner.tune(state, batch, batch)
    state, schedule = tuner.run(state, [(batch, batch)] * 60, values=STRENGTHS.values)
    _, result = tuner.tune(state, batch, batch)
    for name, gradient in result.grad.items():
        # No response yet, no gradient: none of the strengths is in the validation loss.
        assert jnp.all(untrained.grad[name] == 0), name
        assert jnp.all(jnp.isfinite(gradient) & (gradient != 0)), name
        assert jnp.all(jnp.abs(state.hparams[name] - hparams[name]) > 0.05), name
    for name, most in (("cutout", 6), ("holes", 3)):
        values = schedule.values[name]
        assert set(values.tolist()) <= set(range(most + 1))
        assert len(set(values.tolist())) > 1, name
    assert not jnp.isinf(result.info.error)
