"""Eight small trainings of different kinds, to compare optimizers on.

Each is a loss of params and a batch of rows, and arrays from which rows are drawn. Convolutions
have strides as long as their windows, so that they are products of matrices: many copies with
different params run as one batched product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.fashion_mnist import fashion_mnist
from experiments.data.tabular import Name, tabular
from experiments.data.text import text_domains

#: Columns of the factorised matrix differ by this factor in size.
_HEAVY = 100.0


@dataclass(frozen=True)
class Workload:
    """One training.

    - `draw`: `draw(key) -> params`.
    - `loss`: `loss(params, rows) -> scalar`, mean over the rows.
    - `data`: arrays whose leading axes are the rows.
    """

    draw: Callable[[jax.Array], Any]
    loss: Callable[[Any, tuple], jax.Array]
    data: tuple[jax.Array, ...]

    def rows(self, key: jax.Array, count: int) -> tuple[jax.Array, ...]:
        """Drawn with replacement."""
        picked = jax.random.randint(key, (count,), 0, len(self.data[0]))
        return tuple(a[picked] for a in self.data)

    def held(self, count: int = 256) -> tuple[jax.Array, ...]:
        """The first rows, on which the training loss is measured."""
        return tuple(a[:count] for a in self.data)


def layers(sizes: list[int]) -> Callable[[jax.Array], list]:
    """Dense layers of size 1/√fan-in, biases zero."""

    def draw(key: jax.Array) -> list:
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            (jax.random.normal(k, (a, b)) / jnp.sqrt(a), jnp.zeros(b))
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    return draw


def dense(params: list, x: jax.Array) -> jax.Array:
    """Rectified between layers."""
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def classified(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _table(name: Name) -> tuple[np.ndarray, np.ndarray]:
    part = tabular(name).train
    spread = part.x.std(0)
    return (part.x - part.x.mean(0)) / np.where(spread > 0, spread, 1.0), part.y


def _of_table(name: Name, hidden: list[int], classes: int) -> Workload:
    x, y = _table(name)

    def loss(params: list, rows: tuple) -> jax.Array:
        return classified(dense(params, rows[0]), rows[1])

    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    return Workload(layers([x.shape[1], *hidden, classes]), loss, arrays)


def _diabetes() -> Workload:
    x, y = _table("diabetes")

    def loss(params: list, rows: tuple) -> jax.Array:
        return jnp.mean((dense(params, rows[0])[:, 0] - rows[1]) ** 2)

    arrays = jnp.asarray(x, jnp.float32), jnp.asarray((y - y.mean()) / y.std(), jnp.float32)
    return Workload(layers([x.shape[1], 32, 1]), loss, arrays)


def _clothes() -> Workload:
    train, _ = fashion_mnist()
    x = train.x[:1000].reshape(-1, 14, 2, 14, 2).mean((2, 4))[:, 1:13, 1:13] / 255.0
    first, second = layers([9, 8]), layers([32, 16])
    head = layers([64, 10])

    def draw(key: jax.Array) -> list:
        a, b, c = jax.random.split(key, 3)
        return [*first(a), *second(b), *head(c)]

    def loss(params: list, rows: tuple) -> jax.Array:
        (w1, b1), (w2, b2), last = params
        h = rows[0].reshape(-1, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 9)
        h = jax.nn.relu(h @ w1 + b1)
        h = h.reshape(-1, 2, 2, 2, 2, 8).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, 32)
        h = jax.nn.relu(h @ w2 + b2)
        return classified(dense([last], h.reshape(-1, 64)), rows[1])

    return Workload(
        draw, loss, (jnp.asarray(x, jnp.float32), jnp.asarray(train.y[:1000], jnp.int32))
    )


def _characters() -> Workload:
    """A recurrent network with gates over pieces of text, 12 characters long."""
    pieces = text_domains(13)["documentation"].train[:2000] % 64
    width, embedding = 16, 8

    def draw(key: jax.Array) -> dict:
        a, b, c = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(a, (64, embedding)),
            "cell": layers([embedding + width, 4 * width])(b)[0],
            "out": layers([width, 64])(c),
        }

    def loss(params: dict, rows: tuple) -> jax.Array:
        w, b = params["cell"]

        def step(carry: tuple, x: jax.Array) -> tuple:
            h, c = carry
            i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ w + b, 4, axis=-1)
            c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        seen = params["embedding"][rows[0][:, :-1]].swapaxes(0, 1)
        start = (jnp.zeros((seen.shape[1], width)),) * 2
        h = jax.lax.scan(step, start, seen)[1]
        return classified(dense(params["out"], h), rows[0][:, 1:].T)

    return Workload(draw, loss, (jnp.asarray(pieces, jnp.int32),))


def _autoencoder() -> Workload:
    x, _ = _table("digits")
    rows = jnp.asarray(x, jnp.float32)

    def loss(params: list, rows: tuple) -> jax.Array:
        return jnp.mean((dense(params, rows[0]) - rows[0]) ** 2)

    return Workload(layers([64, 32, 8, 32, 64]), loss, (rows,))


def _factorisation() -> Workload:
    """Entries of a matrix of rank 4, columns of very different size."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(40, 4)), rng.normal(size=(4, 30))
    scale = np.geomspace(1.0 / _HEAVY, 1.0, 30) ** 0.5
    i, j = np.divmod(rng.permutation(40 * 30), 30)
    value = (left @ right * scale)[i, j]

    def draw(key: jax.Array) -> dict:
        a, b = jax.random.split(key)
        return {
            "left": 0.3 * jax.random.normal(a, (40, 4)),
            "right": 0.3 * jax.random.normal(b, (30, 4)),
        }

    def loss(params: dict, rows: tuple) -> jax.Array:
        i, j, value = rows
        return jnp.mean((jnp.sum(params["left"][i] * params["right"][j], -1) - value) ** 2)

    return Workload(draw, loss, (jnp.asarray(i), jnp.asarray(j), jnp.asarray(value, jnp.float32)))


#: Those that a joint configuration is found on come first.
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "logistic, breast cancer": lambda: _of_table("breast_cancer", [], 2),
    "dense, digits": lambda: _of_table("digits", [32], 10),
    "dense, diabetes": _diabetes,
    "recurrent, text": _characters,
    "factorisation": _factorisation,
    "dense, wine": lambda: _of_table("wine", [16], 3),
    "convolutions, clothes": _clothes,
    "autoencoder, digits": _autoencoder,
}
