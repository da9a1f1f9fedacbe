"""Trainings of the small byte-level model: everything that they depend on is an argument.

So that a search over fourteen knobs, tuned schedules and learned ones are one compiled program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.byte_model import layer_of, loss
from hypergrad.paths import leaf_names
from strategies.space import Categorical, Float, SearchSpace

LAYERS = ("embedding", "hidden", "output")
# Under the root of Adam: there is a derivative also where a byte never occurs.
UNDER_ROOT = 1e-8

#: Nine knobs that a training depends on smoothly, and five that it does not.
KNOBS = SearchSpace(
    {
        **{f"rate_{layer}": Float(1e-3, 0.1, log=True) for layer in LAYERS},
        "momentum": Float(0.5, 0.99),
        "second_momentum": Float(0.9, 0.9999),
        "decay": Float(1e-5, 0.1, log=True),
        "rise": Float(0.0, 0.5),
        "fall": Float(0.05, 1.0),
        "last": Float(1e-3, 1.0, log=True),
        "shape": Categorical(["linear", "cosine"]),
        "nesterov": Categorical([False, True]),
        "decayed": Categorical(["all", "matrices"]),
        "clipped": Categorical([False, True]),
        "signs": Categorical([False, True]),
    }
)
#: Adam as it usually is, with a cosine: where every search begins.
USUAL: dict[str, Any] = {
    **{f"rate_{layer}": 0.01 for layer in LAYERS},
    "momentum": 0.9,
    "second_momentum": 0.999,
    "decay": 1e-5,
    "rise": 0.0,
    "fall": 1.0,
    "last": 0.05,
    "shape": "cosine",
    "nesterov": False,
    "decayed": "all",
    "clipped": False,
    "signs": False,
}


class Settings(NamedTuple):
    """Of a training: four arrays over steps and layers, and numbers."""

    learning_rate: np.ndarray
    momentum: np.ndarray
    second_momentum: np.ndarray
    batch_weight: np.ndarray
    decay: float = 0.0
    nesterov: float = 0.0
    decay_vectors: float = 1.0
    clip: float = np.inf
    signs: float = 0.0


#: What changes over the steps.
OVER_TIME = Settings._fields[:4]


def from_schedules(values: dict[str, np.ndarray]) -> Settings:
    """Of learned schedules, all of which are there."""
    return Settings(*(values[name] for name in OVER_TIME))


def shape_over(steps: int, rise: float, fall: float, last: float, shape: str) -> np.ndarray:
    """From 0 up to 1 in a share of the steps, and down to `last` in a share at the end."""
    at = (np.arange(steps) + 1) / steps
    up = np.minimum(1, at / max(rise, 1 / steps))
    gone = np.clip((at - 1 / steps - (1 - fall)) / fall, 0, 1)
    gone = (1 - np.cos(np.pi * gone)) / 2 if shape == "cosine" else gone
    return up * (1 - (1 - last) * gone)


def of_config(config: dict[str, Any], steps: int) -> Settings:
    """Of a configuration of `KNOBS`."""
    line = shape_over(steps, *(config[k] for k in ("rise", "fall", "last", "shape")))
    ones = np.ones((steps, len(LAYERS)))
    peaks = np.array([config[f"rate_{layer}"] for layer in LAYERS])
    # Steps by sign all have the size of the rate: a tenth of Adam's is their usual one.
    scale = 0.1 if config["signs"] else 1.0
    return Settings(
        scale * peaks * line[:, None],
        config["momentum"] * ones,
        config["second_momentum"] * ones,
        ones,
        config["decay"],
        float(config["nesterov"]),
        float(config["decayed"] == "all"),
        1.0 if config["clipped"] else np.inf,
        float(config["signs"]),
    )


def train(settings: Settings, params: dict, batches: np.ndarray) -> dict:
    """The parameters after one step on each batch of `batches`, `(steps, batch, length)`."""
    arrays = [jnp.asarray(field, jnp.float32) for field in settings]
    return _train(Settings(*arrays), params, batches)  # type: ignore[arg-type]


@jax.jit
def _train(settings: Settings, params: dict, batches: jax.Array) -> dict:
    structure = jax.tree.structure(params)
    layer = [LAYERS.index(layer_of(name)) for name in leaf_names(params)]

    def step(carry: tuple, now: tuple) -> tuple[tuple, None]:
        w, m, v, count = carry
        rates, momenta, seconds, weights, batch = now
        gradient = jax.tree.leaves(jax.grad(loss)(jax.tree.unflatten(structure, w), None, batch))
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradient))
        shrink = jnp.minimum(1, settings.clip / norm)
        out: list[list] = [[], [], []]
        for each, g, a, b, i in zip(w, gradient, m, v, layer, strict=True):
            g = shrink * weights[i] * g
            a = momenta[i] * a + (1 - momenta[i]) * g
            b = seconds[i] * b + (1 - seconds[i]) * g**2
            ahead = settings.nesterov * (momenta[i] * a + (1 - momenta[i]) * g)
            ahead = ahead + (1 - settings.nesterov) * a
            mean = ahead / (1 - momenta[i] ** count)
            square = b / (1 - seconds[i] ** count)
            adam = mean / (jnp.sqrt(square + UNDER_ROOT) + 1e-8)
            move = jnp.where(settings.signs > 0, jnp.sign(ahead), adam)
            decay = settings.decay * (1 if each.ndim > 1 else settings.decay_vectors)
            out[0].append(each - rates[i] * (move + decay * each))
            out[1].append(a)
            out[2].append(b)
        return (*out, count + 1), None

    leaves = jax.tree.leaves(params)
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    over_time = (*settings[: len(OVER_TIME)], batches)
    (end, *_), _ = jax.lax.scan(step, (leaves, zeros, zeros, jnp.ones((), jnp.float32)), over_time)
    return jax.tree.unflatten(structure, end)
