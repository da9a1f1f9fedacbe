"""Small bilevel problems with dense float64 truths, shared by the core's tests."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from hypergrad import BilevelProblem, Newton

# Golden ridge: three rows to train, two to validate.
X = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
Y = jnp.array([1.0, 2.0, 2.0])
XV = jnp.array([[1.0, 2.0], [2.0, -1.0]])
YV = jnp.array([2.5, 1.0])


def ridge_inner(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def half_mse(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


RIDGE = BilevelProblem(ridge_inner, half_mse)


def logistic(rows: int = 60, features: int = 8, classes: int = 3, dtype: Any = jnp.float64):
    """Multinomial logistic regression with one log penalty per weight."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(features, classes))

    def data(n):
        x = rng.normal(size=(n, features))
        y = np.argmax(x @ truth + 0.5 * rng.gumbel(size=(n, classes)), axis=1)
        return jnp.asarray(x, dtype), jnp.asarray(y)

    def cross_entropy(w, batch):
        x, y = batch
        logits = jax.nn.log_softmax(x @ w)
        return -jnp.mean(jnp.take_along_axis(logits, y[:, None], axis=1))

    def inner(w, lam, batch):
        return cross_entropy(w, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    problem = BilevelProblem(inner, lambda w, lam, batch: cross_entropy(w, batch))
    w = jnp.zeros((features, classes), dtype)
    lam = jnp.asarray(rng.normal(size=(features, classes)) * 0.3 - 3.0, dtype)
    return problem, w, lam, data(rows), data(rows)


def mlp(dtype: Any = jnp.float64):
    """A two-layer network on nested params, with a penalty per layer and a loss temperature."""
    rng = np.random.default_rng(1)
    params = {
        "first": (
            jnp.asarray(0.5 * rng.normal(size=(4, 6)), dtype),
            jnp.asarray(0.1 * rng.normal(size=6), dtype),
        ),
        "second": [jnp.asarray(0.5 * rng.normal(size=(6, 1)), dtype)],
    }
    x = rng.normal(size=(40, 4))
    y = np.sin(x[:, 0]) + 0.3 * x[:, 1] ** 2

    def predict(p, x):
        weight, bias = p["first"]
        return (jnp.tanh(x @ weight + bias) @ p["second"][0])[:, 0]

    def inner(p, lam, batch):
        x, y = batch
        penalty = jnp.exp(lam["first"]) * sum(jnp.sum(a**2) for a in p["first"])
        penalty += jnp.exp(lam["second"]) * jnp.sum(p["second"][0] ** 2)
        return jnp.mean((predict(p, x) - y) ** 2) + penalty

    def outer(p, lam, batch):
        x, y = batch
        return jnp.mean((predict(p, x) - y) ** 2) + 0.01 * lam["first"] ** 2

    lam = {"first": jnp.asarray(-5.0, dtype), "second": jnp.asarray(-4.5, dtype)}
    cast = lambda a: jnp.asarray(a, dtype)  # noqa: E731
    train, valid = (cast(x[:20]), cast(y[:20])), (cast(x[20:]), cast(y[20:]))
    return BilevelProblem(inner, outer), params, lam, train, valid


@eqx.filter_jit
def solved(problem, params, lam, batch):
    """The inner solution to rounding error."""
    return Newton().run(problem, params, lam, batch).params


@eqx.filter_jit
def dense_hypergradient(problem, params, lam, inner_batch, outer_batch):
    """The same formula with every matrix formed, flat over the hyperparameters."""
    w, unravel_w = ravel_pytree(params)
    h, unravel_h = ravel_pytree(lam)

    def residual(w, h):
        return ravel_pytree(problem.residual(unravel_w(w), unravel_h(h), inner_batch))[0]

    def outer(w, h):
        return problem.outer_loss(unravel_w(w), unravel_h(h), outer_batch)[0]

    hessian = jax.jacobian(residual, 0)(w, h)
    mixed = jax.jacobian(residual, 1)(w, h)
    g, direct = jax.grad(outer, (0, 1))(w, h)
    return direct - mixed.T @ jnp.linalg.solve(hessian.T, g)


def relative_error(estimate, truth):
    """`‖estimate − truth‖ / ‖truth‖` of pytrees or arrays."""
    a, b = ravel_pytree(estimate)[0], ravel_pytree(truth)[0]
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
