"""A short training run in which hyperparameters act everywhere that they can."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad import BilevelProblem

STEPS = 12


def optimizer(h):
    schedule = h["rate"]
    return optax.chain(
        optax.add_decayed_weights(h["decay"]),
        optax.trace(h["momentum"]),
        optax.scale_by_schedule(lambda t: -schedule[t]),
    )


def initial(params, h):
    return jax.tree.map(lambda a, b: a + h["gain"] * b, params, h["start"])


def _predict(p, x):
    return jnp.tanh(x @ p["in"][0] + p["in"][1]) @ p["out"]


def _inner(p, h, batch):
    x, y = batch
    weights = jax.nn.sigmoid(h["weights"])
    return jnp.mean(weights * (_predict(p, x) - y) ** 2)


def _outer(p, h, batch):
    x, y = batch
    return jnp.mean((_predict(p, x) - y) ** 2)


PROBLEM = BilevelProblem(_inner, _outer)


def case(dtype=jnp.float64):
    """`params, hparams, inner batch, outer batch`; one batch per step.

    All values are exact in float32, so that both precisions run the same problem.
    """
    rng = np.random.default_rng(3)

    def exact(value):
        return jnp.asarray(np.float32(value), dtype)

    def like(scale):
        hidden, bias, out = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=4)
        return {"in": (exact(scale * hidden), exact(scale * bias)), "out": exact(scale * out)}

    hparams = {
        "rate": exact(np.linspace(0.3, 0.1, STEPS)),
        "decay": exact(0.02),
        "momentum": exact(0.6),
        "weights": exact(rng.normal(size=8)),
        "gain": exact(0.7),
        "start": like(0.3),
    }
    x = rng.normal(size=(STEPS + 1, 8, 3))
    y = exact(np.sin(x[..., 0]) + 0.5 * x[..., 1])
    x = exact(x)
    return like(0.3), hparams, (x[:-1], y[:-1]), (x[-1], y[-1])


def plain(hparams, params, inner, outer, *, first=0, before=None):
    """The outer loss after the run, as a plain scan.

    Steps before `first`, and the start, take their hyperparameters from `before`.
    """
    begun = hparams if before is None else before
    w = initial(params, begun) if "gain" in begun else params
    state = optimizer(begun).init(w)

    def step(carry, at):
        t, batch = at
        w, state = carry
        h = jax.tree.map(lambda a, b: jnp.where(t < first, a, b), begun, hparams)
        updates, state = optimizer(h).update(jax.grad(_inner)(w, h, batch), state, w)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(step, (w, state), (jnp.arange(STEPS), inner))
    return _outer(w, hparams, outer)
