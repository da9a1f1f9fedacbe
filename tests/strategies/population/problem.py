"""A small regression with momentum, whose trainings the tests know in plain Python too."""

import jax
import jax.numpy as jnp

from strategies import Float, Int, SearchSpace

SPACE = SearchSpace(
    {
        "rate": Float(1e-3, 0.3, log=True),
        "inner": {"decay": Float(0.0, 0.1)},
        "power": Int(1, 2),
    }
)
X = jax.random.normal(jax.random.key(7), (40, 6))
Y = jnp.sin(X @ jnp.arange(6.0))


def init(key, config):
    return {"w": 0.1 * jax.random.normal(key, (6,)), "velocity": jnp.zeros(6), "key": key}


def batch(key, config):
    rows = jax.random.choice(key, len(X), (8,))
    return X[rows], Y[rows]


def step(state, config, batch, key):
    x, y = batch

    def loss(w):
        return jnp.mean((x @ w - y) ** 2) + config["inner"]["decay"] * jnp.sum(w**2)

    value, slope = jax.value_and_grad(loss)(state["w"])
    slope = slope + 1e-3 * jax.random.normal(key, (6,))
    velocity = 0.5 * state["velocity"] + slope
    new = {"w": state["w"] - config["rate"] * velocity, "velocity": velocity, "key": key}
    return new, {"loss": value}


def evaluate(state, config):
    return jnp.mean(jnp.abs(X @ state["w"] - Y) ** config["power"])


def alone(config, number, steps, seed=0):
    """One member, trained by a loop of plain calls, by the keys that the page states."""
    member = jax.random.fold_in(jax.random.key(seed), number)
    state = init(jax.random.fold_in(member, 0), config)
    for age in range(steps):
        draw, move = jax.random.split(jax.random.fold_in(member, age + 1))
        state, _ = _step(state, config, batch(draw, config), move)
    return state, float(evaluate(state, config))


_step = jax.jit(step)
