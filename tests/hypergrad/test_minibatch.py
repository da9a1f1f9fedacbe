"""Products accumulated over mini-batches: the same numbers, one mini-batch in memory."""

import jax
import jax.numpy as jnp
import pytest

from hypergrad import BilevelProblem, ImplicitDifferentiation, hypergradient, over_batches
from tests.hypergrad.problems import logistic, relative_error, solved


def test_the_mean_of_the_mini_batches_is_the_whole():
    problem, params, lam, train, valid = logistic(rows=30, features=3, classes=2)
    params = solved(problem, params, lam, train)
    stack = lambda data: jax.tree.map(lambda a: a.reshape(5, 6, *a.shape[1:]), data)  # noqa: E731
    stacked = BilevelProblem(over_batches(problem.inner), over_batches(problem.outer))
    estimator = ImplicitDifferentiation(error_estimate=False)
    out = hypergradient(stacked, params, lam, stack(train), stack(valid), estimator=estimator)
    whole = hypergradient(problem, params, lam, train, valid, estimator=estimator)
    assert relative_error(out.grad, whole.grad) < 1e-10
    assert relative_error(out.value, whole.value) < 1e-12


def test_memory_of_the_products_does_not_grow_with_their_number():
    def loss(w, lam, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2) + jnp.exp(lam) * jnp.sum(w**2)

    mean = over_batches(loss)

    def products(w, lam, batches, v):
        _, product = jax.linearize(lambda w: jax.grad(mean)(w, lam, batches), w)
        return jax.lax.fori_loop(0, 3, lambda i, v: product(v), v)

    def memory(count):
        w = jnp.ones((64, 64))
        program = jax.jit(products).lower(w, 0.0, jnp.ones((count, 256, 64)), w)
        return program.compile().memory_analysis().temp_size_in_bytes

    assert memory(16) < 1.2 * memory(2)


def test_keys_and_aux(key):
    def loss(w, lam, x, key):
        noise = jax.random.normal(key, ())
        return lam * w**2 + x * w + 0 * noise, noise

    value, aux = over_batches(loss, has_aux=True)(2.0, 3.0, jnp.array([1.0, 3.0]), key)
    assert value == 16
    assert aux[0] == jax.random.normal(jax.random.fold_in(key, 0), ())
    assert aux[0] != aux[1]


def test_mismatched_mini_batches():
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        over_batches(lambda w, lam, b: w)(0.0, 0.0, (jnp.ones(2), jnp.ones(3)))
