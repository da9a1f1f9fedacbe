"""The two problems that the benchmarks time.

(a) multinomial logistic regression on scikit-learn's digits, one weight decay for each of the 640
    weights, solved to rounding in float64;
(b) a 784-512-512-10 network on Fashion-MNIST, one weight decay for each of the 669,706 weights, in
    float32. Where the data set is not on this machine, random images of the same shape stand for it
    (speed does not depend on the pixels); the table says so.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from hypergrad import BilevelProblem, Curvature, Hessian

Batch = tuple[Array, Array]


class Case(NamedTuple):
    """A bilevel problem and the point at which it is differentiated."""

    name: str
    problem: BilevelProblem
    params: PyTree
    hparams: PyTree
    inner_batch: Any
    outer_batch: Any
    curvature: Curvature = Hessian()
    step: float = 0.05  # of Neumann's series and of gradient descent


def cross_entropy(logits: Array, labels: Array) -> Scalar:
    """Mean cross-entropy of integer labels."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def penalty(params: PyTree, log_decay: PyTree) -> Scalar:
    """`½ Σ exp(log_decay) w²`."""
    terms = jax.tree.map(lambda w, d: jnp.sum(jnp.exp(d) * w**2), params, log_decay)
    return 0.5 * sum(jax.tree.leaves(terms))


def _linear_outer(w: Array, log_decay: Array, batch: Batch) -> Scalar:
    x, y = batch
    return cross_entropy(x @ w, y)


def _linear_inner(w: Array, log_decay: Array, batch: Batch) -> Scalar:
    return _linear_outer(w, log_decay, batch) + penalty(w, log_decay)


@jax.jit
def newton(w: Array, log_decay: Array, batch: Batch) -> tuple[Array, Scalar]:
    """A damped Newton step on the inner problem of (a), and the gradient's norm before it."""
    gradient, hessian = jax.grad(_linear_inner), jax.hessian(_linear_inner)
    g = gradient(w, log_decay, batch)
    h = hessian(w, log_decay, batch).reshape(w.size, w.size)
    direction = -jnp.linalg.solve(h, g.ravel()).reshape(w.shape)
    sizes = 0.5 ** jnp.arange(8.0)
    losses = jax.vmap(lambda s: _linear_inner(w + s * direction, log_decay, batch))(sizes)
    return w + sizes[jnp.argmin(losses)] * direction, jnp.linalg.norm(g)


def digits(log_decay: float | Array = -7.0) -> Case:
    """Problem (a) at its solution, in the default dtype of JAX (the benchmarks enable float64)."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16.0), jnp.asarray(y[order])
    inner, outer = (x[:900], y[:900]), (x[900:], y[900:])
    decay = jnp.broadcast_to(jnp.asarray(log_decay, x.dtype), (64, 10))
    w = solve_digits(jnp.zeros((64, 10), x.dtype), decay, inner)
    problem = BilevelProblem(_linear_inner, _linear_outer)
    return Case("digits", problem, w, decay, inner, outer)


def solve_digits(w: Array, log_decay: Array, batch: Batch) -> Array:
    """The inner solution of (a), by Newton's method to rounding."""
    size, steps = jnp.inf, 0
    while size > 1e-13 and steps < 60:
        w, size = newton(w, log_decay, batch)
        steps += 1
    return w


def mlp(batch: int = 256) -> Case:
    """Problem (b) after some plain training, float32.

    The decay is strong enough for a positive-definite Hessian: where it is not, the library stops
    and says so, and a comparison of times with code that runs on would be none.
    """
    rng = np.random.default_rng(0)
    name = "mlp"
    try:
        from experiments.data import fashion_mnist

        train, _ = fashion_mnist()
        chosen = rng.permutation(len(train.x))[: 2 * batch]
        x = np.asarray(train.x[chosen], np.float32).reshape(-1, 784) / 255
        y = np.asarray(train.y[chosen], np.int32)
    except FileNotFoundError:
        name = "mlp (synthetic images)"
        x = rng.random((2 * batch, 784), np.float32)
        y = rng.integers(0, 10, 2 * batch).astype(np.int32)
    sizes = (784, 512, 512, 10)
    params = [
        {
            "w": jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(m), jnp.float32),
            "b": jnp.zeros(n, jnp.float32),
        }
        for m, n in itertools.pairwise(sizes)
    ]
    decay = jax.tree.map(lambda p: jnp.full_like(p, 1.0), params)

    def outer(params: PyTree, log_decay: PyTree, batch: Batch) -> Scalar:
        h, labels = batch
        for layer in params[:-1]:
            h = jnp.tanh(h @ layer["w"] + layer["b"])
        return cross_entropy(h @ params[-1]["w"] + params[-1]["b"], labels)

    def inner(params: PyTree, log_decay: PyTree, batch: Batch) -> Scalar:
        return outer(params, log_decay, batch) + penalty(params, log_decay)

    x, y = jnp.asarray(x), jnp.asarray(y)
    inner_batch, outer_batch = (x[:batch], y[:batch]), (x[batch:], y[batch:])

    @jax.jit
    def trained(params: PyTree) -> PyTree:
        def step(_: Array, p: PyTree) -> PyTree:
            g = jax.grad(inner)(p, decay, inner_batch)
            return jax.tree.map(lambda a, b: a - 0.2 * b, p, g)

        return jax.lax.fori_loop(0, 20, step, params)

    problem = BilevelProblem(inner, outer)
    return Case(name, problem, trained(params), decay, inner_batch, outer_batch)
