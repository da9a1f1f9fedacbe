"""An optimizer that is a network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, hypergradient
from hypergrad.learned_optimizer import LearnedOptimizer
from hypergrad.transfer import infer
from hypergrad.unrolled import Unrolled

X = jax.random.normal(jax.random.key(0), (12, 3))
Y = jnp.sin(X.sum(1))
LEARNED = LearnedOptimizer(0.02, hidden=3)


def draw(width):
    keys = jax.random.split(jax.random.key(1), 3)
    sizes = [(3, width), (width, width), (width, 1)]
    return [jax.random.normal(k, s) / jnp.sqrt(s[0]) for k, s in zip(keys, sizes, strict=True)]


def loss(params, hparams=None, batch=None):
    first, middle, last = params
    return jnp.mean(((jnp.tanh(jnp.tanh(X @ first) @ middle) @ last)[:, 0] - Y) ** 2)


def trained(optimizer, params, scale=1.0, steps=6):
    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: scale * loss(p))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]


def other(key):
    """Weights that do something."""
    leaves, tree = jax.tree.flatten(LEARNED.init(key))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree, [a + 0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    )


def test_it_begins_as_adam():
    weights = LEARNED.init(jax.random.key(0))
    mine = jax.jit(lambda p: trained(LEARNED(weights), p))(draw(4))
    adam = jax.jit(lambda p: trained(optax.adam(0.02, 0.9, 0.99, eps=0.0), p))(draw(4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mine, adam)


def test_parameters_at_zero_have_no_steep_derivative():
    optimizer = LEARNED(other(jax.random.key(2)))
    update = lambda p: optimizer.update(jnp.ones(3), optimizer.init(p), p)[0]  # noqa: E731
    np.testing.assert_array_equal(jax.jacobian(update)(jnp.zeros(3)), 0)


def test_it_does_not_see_the_scale_of_the_loss():
    optimizer = LEARNED(other(jax.random.key(2)))
    run = jax.jit(lambda p, scale: trained(optimizer, p, scale))
    ends = [run(draw(4), scale) for scale in (1.0, 1e-6)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)
    assert float(jnp.abs(ends[0][0] - draw(4)[0]).max()) > 1e-3


def test_hypergradients_of_its_weights_are_those_of_differences():
    weights, steps = other(jax.random.key(3)), 4
    problem = BilevelProblem(loss, loss)
    found = hypergradient(problem, draw(4), weights, None, None, estimator=Unrolled(LEARNED, steps))
    direction = other(jax.random.key(4))

    @jax.jit
    def end(t):
        moved = jax.tree.map(lambda a, d: a + t * d, weights, direction)
        return loss(trained(LEARNED(moved), draw(4), steps=steps))

    difference = (end(1e-5) - end(-1e-5)) / 2e-5
    pairs = zip(jax.tree.leaves(found.grad), jax.tree.leaves(direction), strict=True)
    slope = sum(jnp.vdot(g, d) for g, d in pairs)
    assert abs(slope / difference - 1) < 1e-5


def test_under_a_rule_hidden_arrays_move_less():
    rule = infer(draw(4), draw(8))
    optimizer = LEARNED(other(jax.random.key(2)))

    @jax.jit
    def first(params):
        gradient = jax.grad(loss)(params)
        both = (optimizer, rule.optimizer(optimizer))
        return [each.update(gradient, each.init(params), params)[0] for each in both]

    plain, scaled = first(draw(8))
    for a, b, factor in zip(plain, scaled, (1, 2, 1), strict=True):
        np.testing.assert_allclose(a, factor * b, rtol=1e-9)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"decays: expected numbers in \(0, 1\)"):
        LearnedOptimizer(decays=(1.0,))
    optimizer = LEARNED(LEARNED.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="expected params"):
        optimizer.update(draw(4), optimizer.init(draw(4)))
