"""Small real trainings of one shape, so that they run side by side: instances for policies.

Digits, breast cancer, wine and Fashion-MNIST, brought to 64 columns and ten classes, with a random
choice of examples, hidden units, label noise and scale of the inputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.fashion_mnist import fashion_mnist
from experiments.data.tabular import tabular

EXAMPLES, COLUMNS, CLASSES, HIDDEN, BATCH = 128, 64, 10, 24, 32
SETS = ("digits", "breast_cancer", "wine", "fashion_mnist")


class Trainings(NamedTuple):
    """Instances along the first axis of every leaf.

    - `params`: where each starts; hidden units that an instance lacks are zero, and stay so.
    - `batches`: mini-batches, a further axis over steps.
    - `whole`: all training examples.
    """

    params: dict
    batches: tuple
    whole: tuple
    names: list[str]

    def part(self, rows: slice) -> "Trainings":
        """Some of the instances."""
        params, batches, whole = jax.tree.map(lambda a: a[rows], self[:3])
        return Trainings(params, batches, whole, self.names[rows])


def loss(params: dict, theta: object, batch: tuple) -> jax.Array:
    """Cross-entropy of a network with one hidden layer."""
    x, y = batch
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    scores = jax.nn.log_softmax(hidden @ params["out"] + params["last"])
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))


def _columns(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if name == "fashion_mnist":
        part = fashion_mnist()[0]
        rows = np.random.default_rng(seed).permutation(len(part.y))[:2000]
        padded = np.pad(part.x[rows].astype(float), ((0, 0), (2, 2), (2, 2)))
        x, y = padded.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64), part.y[rows]
    else:
        x, y = tabular(name, seed=seed).train
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    return np.pad(x, ((0, 0), (0, COLUMNS - x.shape[1]))), y.astype(int)


def trainings(count: int, steps: int, seed: int) -> Trainings:
    """`count` instances, the sets in turn, with mini-batches for `steps` steps."""
    rng = np.random.default_rng(seed)
    tables = {name: _columns(name, seed) for name in SETS}
    params, batches, wholes, names = [], [], [], []
    for i in range(count):
        name = SETS[i % len(SETS)]
        x, y = tables[name]
        rows = rng.choice(len(y), EXAMPLES, replace=len(y) < EXAMPLES)
        x, y = x[rows] * 10 ** rng.uniform(-0.5, 0.5), y[rows].copy()
        noisy = rng.random(EXAMPLES) < rng.choice([0.0, 0.1, 0.3])
        y[noisy] = rng.integers(0, CLASSES, noisy.sum())
        alive = np.arange(HIDDEN) < rng.choice([8, 16, HIDDEN])
        params.append(
            {
                "in": rng.normal(size=(COLUMNS, HIDDEN)) / np.sqrt(COLUMNS) * alive,
                "bias": np.zeros(HIDDEN),
                "out": rng.normal(size=(HIDDEN, CLASSES)) / np.sqrt(alive.sum()) * alive[:, None],
                "last": np.zeros(CLASSES),
            }
        )
        order = [rng.permutation(EXAMPLES) for _ in range(-(-steps * BATCH // EXAMPLES))]
        drawn = np.concatenate(order)[: steps * BATCH].reshape(steps, BATCH)
        batches.append((x[drawn], y[drawn]))
        wholes.append((x, y))
        names.append(name)

    def stacked(trees: list) -> dict | tuple:
        return jax.tree.map(
            lambda *leaves: jnp.asarray(
                np.stack(leaves), jnp.int32 if leaves[0].dtype.kind == "i" else jnp.float32
            ),
            *trees,
        )

    return Trainings(stacked(params), stacked(batches), stacked(wholes), names)
