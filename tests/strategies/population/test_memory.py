"""Memory is predicted from shapes; what the compiler allots is close to it."""

import jax
import jax.numpy as jnp
import pytest

from strategies import Float, RandomSearcher, SearchSpace
from strategies.population import Population
from strategies.population.memory import available, peak, size_of

SPACE = SearchSpace({"rate": Float(1e-3, 1.0, log=True)})


def alive(function, *shapes):
    return peak(jax.make_jaxpr(function)(*(jnp.zeros(s, jnp.float32) for s in shapes)).jaxpr)


def test_elementwise_chains_are_not_written():
    square = 4 * 50 * 50
    assert alive(lambda a, b: a @ b, (50, 50), (50, 50)) == square
    # Of the chain between two products only what the second one reads, beside one product.
    chain = alive(lambda a, b: jnp.tanh(jnp.exp(a @ b) + 1) @ b, (50, 50), (50, 50))
    assert chain == 2 * square
    # Both are there until their sums are added: these are computed where they are used.
    assert alive(lambda a, b: (a @ b).sum() + (b @ a).sum(), (50, 50), (50, 50)) <= 2 * square + 8
    # In a call of its own as outside.
    inside = alive(lambda a, b: jax.jit(lambda c: jnp.tanh(c @ b) @ b)(a), (50, 50), (50, 50))
    assert inside == 2 * square
    loop = alive(lambda a, b: jax.lax.fori_loop(0, 3, lambda _, c: c @ b, a), (50, 50), (50, 50))
    assert 2 * square <= loop <= 2 * square + 16  # and the counter


def test_keys_have_a_size():
    assert size_of(jax.random.split(jax.random.key(0), 5).aval) == 40
    assert available(jax.devices("cpu")[0]) > 2**20


@pytest.mark.parametrize(("width", "lanes"), [(16, 64), (96, 32)])
def test_the_compiler_allots_what_was_predicted(width, lanes):
    """Within a twentieth, either way."""
    images = jnp.ones((300, 64), jnp.float32)

    def init(key, config):
        weights = [jnp.ones((64, width), jnp.float32), jnp.ones((width, 10), jnp.float32)]
        return weights, [jnp.zeros_like(w) for w in weights]

    def loss(weights, x):
        return -jnp.mean(jax.nn.log_softmax(jax.nn.relu(x @ weights[0]) @ weights[1])[:, 0])

    def step(state, config, batch, key):
        weights, velocity = state
        slope = jax.grad(loss)(weights, batch)
        velocity = [0.5 * v + s for v, s in zip(velocity, slope, strict=True)]
        rate = config["rate"].astype(jnp.float32)
        return ([w - rate * v for w, v in zip(weights, velocity, strict=True)], velocity), {}

    def batch(key, config):
        return images[jax.random.randint(key, (32,), 0, 300)]

    population = Population(
        init, step, lambda s, c: loss(s[0], images), lanes, space=SPACE, batch=batch
    )
    (program,) = population.programs().values()
    assert program.shared == images.nbytes
    found = program.compiled.memory_analysis()
    allotted = (
        found.temp_size_in_bytes
        + found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )
    assert 0.95 < (allotted + program.shared) / population.predicted_bytes < 1.05
    assert population.run(RandomSearcher(SPACE), trials=3, steps=2).best_value is not None
