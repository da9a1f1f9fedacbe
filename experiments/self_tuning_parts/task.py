"""The task: a small image classifier with nine hyperparameters of regularisation."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.data import fashion_mnist, tabular
from hypergrad.self_tuning import (
    Bounded,
    Discrete,
    Hyperparameters,
    Positive,
    SelfTuningModel,
    squared_norm,
)
from hypergrad.self_tuning import regularisers as reg
from strategies import Float, Int, SearchSpace

BATCH = 64
MOST_HOLES = 2
OPTIMIZER = optax.adam(5e-3)
Values = dict[str, Any]


class Task(NamedTuple):
    """Training, validation and test data: images `(n, 1, side, side)` and labels."""

    train: tuple[Array, Array]
    valid: tuple[Array, Array]
    test: tuple[Array, Array]

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.train[0].shape[-1]


def load(name: str, examples: int, seed: int) -> Task:
    """Images with pixels in [0, 1]; the training set has `examples` of them."""
    if name == "digits":
        arrays = [
            (part.x.reshape(-1, 1, 8, 8) / 16, part.y) for part in tabular("digits", seed=seed)
        ]
    else:
        train, test = fashion_mnist()
        order = np.random.default_rng(seed).permutation(len(train.y))[:12_000]
        images, labels = halved(train.x[order]), train.y[order]
        arrays = [
            (images[:10_000], labels[:10_000]),
            (images[10_000:], labels[10_000:]),
            (halved(test.x), test.y),
        ]
    arrays[0] = tuple(a[:examples] for a in arrays[0])
    return Task(*((jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)) for x, y in arrays))


def halved(images: np.ndarray) -> np.ndarray:
    """Images of 28 x 28 as means over 2 x 2 pixels, in [0, 1]: a quarter of the work."""
    return images.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)) / 255


class Network(eqx.Module):
    """Two convolutions of stride 2 and two dense layers, or (`"mlp"`) three dense layers."""

    layers: list[Any]

    def __init__(self, kind: str, side: int, key: Array):
        a, b, c, d = jax.random.split(key, 4)
        if kind == "cnn":
            self.layers = [
                eqx.nn.Conv2d(1, 8, 5, stride=2, padding=2, key=a),
                eqx.nn.Conv2d(8, 16, 3, stride=2, padding=1, key=b),
                eqx.nn.Linear(16 * (-(-side // 4)) ** 2, 64, key=c),
                eqx.nn.Linear(64, 10, key=d),
            ]
        else:
            sizes = (side * side, 64, 64, 10)
            pairs = zip(sizes, sizes[1:], (a, b, c), strict=False)
            self.layers = [eqx.nn.Linear(m, n, key=k) for m, n, k in pairs]

    def __call__(self, x: Array, rates: Array | None = None, key: Array | None = None) -> Array:
        """Scores of one image; with `key`, dropout before each of the last two layers."""
        *features, first, last = self.layers
        for layer in features:
            x = jax.nn.relu(layer(x if layer.weight.ndim == 4 else x.ravel()))
        x = x.ravel()
        keys = (None, None) if key is None else jax.random.split(key)
        x = x if key is None else reg.dropout(x, rates[0], keys[0])
        x = jax.nn.relu(first(x))
        x = x if key is None else reg.dropout(x, rates[1], keys[1])
        return last(x)


def hyperparameters(side: int) -> Hyperparameters:
    """What is tuned, from the middle of each domain."""
    return Hyperparameters(
        {
            "dropout": Bounded(0.0, 0.8, initial=0.4, shape=(2,)),
            "decay": Positive(3e-5),
            "smoothing": Bounded(0.0, 0.5, initial=0.25),
            "noise": Bounded(0.0, 0.5, initial=0.25),
            "shift": Bounded(0.0, side / 7, initial=side / 14),
            "brightness": Bounded(0.0, 0.8, initial=0.4),
            "cutout": Discrete(0, side // 2, initial=side // 4),
            "holes": Discrete(0, MOST_HOLES, initial=MOST_HOLES // 2),
        }
    )


def search_space(side: int) -> SearchSpace:
    """The same domains for the searches."""
    return SearchSpace(
        {
            "dropout": Float(0.0, 0.8, shape=(2,)),
            "decay": Float(1e-7, 1e-2, log=True),
            "smoothing": Float(0.0, 0.5),
            "noise": Float(0.0, 0.5),
            "shift": Float(0.0, side / 7),
            "brightness": Float(0.0, 0.8),
            "cutout": Int(0, side // 2),
            "holes": Int(0, MOST_HOLES),
        }
    )


def training_loss(model: PyTree, values: Values, batch: PyTree, key: Array) -> Scalar:
    """Cross-entropy with augmentation, dropout, smoothed labels and weight decay."""
    images, labels = batch

    def one(image: Array, label: Array, key: Array) -> Scalar:
        keys = jax.random.split(key, 5)
        image = reg.shift(image, values["shift"], keys[0])
        image = reg.brightness(image, values["brightness"], keys[1])
        image = reg.cutout(image, values["cutout"], values["holes"], keys[2], most=MOST_HOLES)
        image = reg.input_noise(image, values["noise"], keys[3])
        scores = model(image, values["dropout"], keys[4])
        return optax.softmax_cross_entropy(
            scores, reg.smooth_labels(label, 10, values["smoothing"])
        )

    loss = jnp.mean(jax.vmap(one)(images, labels, jax.random.split(key, len(labels))))
    gated = model.gated if isinstance(model, SelfTuningModel) else model
    return loss + values["decay"] * squared_norm(gated)


def loss(model: PyTree, batch: PyTree) -> Scalar:
    """Cross-entropy without regularisers."""
    scores = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


test_loss = eqx.filter_jit(loss)


@eqx.filter_jit
def accuracy(model: PyTree, batch: PyTree) -> Scalar:
    """Share of labels that are right."""
    return jnp.mean(jnp.argmax(jax.vmap(model)(batch[0]), axis=1) == batch[1])


def draw(data: tuple[Array, Array], key: Array) -> tuple[Array, Array]:
    """A random batch."""
    rows = jax.random.randint(key, (BATCH,), 0, len(data[1]))
    return data[0][rows], data[1][rows]
