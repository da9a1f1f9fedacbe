"""Trainings of the small byte-level model on domains of text, and DoReMi's rule for their weights.

Steps and weights are arguments, so that trainings of any length and mixture are one program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.byte_model import loss

# Of DoReMi's weights: step and smoothing of Xie et al. 2023.
_STEP, _SMOOTHING = 1.0, 1e-3


class Domains(NamedTuple):
    """Pieces of all domains, one after the other; where each begins, and how many it has."""

    pieces: jax.Array
    first: jax.Array
    count: jax.Array


def joined(data: list[np.ndarray]) -> Domains:
    """The domains in this order."""
    sizes = np.array([len(part) for part in data])
    first = np.cumsum([0, *sizes])[:-1]
    return Domains(jnp.concatenate(data), jnp.asarray(first), jnp.asarray(sizes))


def optimizer_of(rate: float) -> optax.GradientTransformation:
    """Adam, with a derivative also where a byte never occurs."""
    return optax.adam(rate, eps_root=1e-8)


def _drawn(domains: Domains, domain: jax.Array, key: jax.Array) -> jax.Array:
    """A piece of each of these domains."""
    rows = jnp.floor(jax.random.uniform(key, domain.shape) * domains.count[domain])
    return domains.pieces[domains.first[domain] + rows.astype(jnp.int32)]


def train(
    domains: Domains,
    weights: np.ndarray,
    params: dict,
    steps: int,
    *,
    each: int,
    rate: float,
    key: jax.Array,
    drawn: bool = False,
) -> dict:
    """Mini-batches of `each` pieces of every domain, whose losses have these weights.

    With `drawn` the weights are probabilities: as many pieces, their domains drawn, losses alike.
    """
    return _train(domains, jnp.asarray(weights), params, jnp.asarray(steps), key, each, rate, drawn)


@jax.jit(static_argnums=(5, 6, 7))
def _train(
    domains: Domains,
    weights: jax.Array,
    params: dict,
    steps: jax.Array,
    key: jax.Array,
    each: int,
    rate: float,
    drawn: bool,
) -> dict:
    optimizer = optimizer_of(rate)
    every = jnp.repeat(jnp.arange(len(weights)), each)

    def step(t: jax.Array, carry: tuple) -> tuple:
        w, state = carry
        which, row = jax.random.split(jax.random.fold_in(key, t))
        domain, share = every, weights[every] / each
        if drawn:
            domain = jax.random.categorical(which, jnp.log(weights), shape=every.shape)
            share = jnp.full(every.shape, 1 / every.size)
        pieces = _drawn(domains, domain, row)[:, None]

        def weighted(w: dict) -> jax.Array:
            return share @ jax.vmap(lambda piece: loss(w, None, piece))(pieces)

        updates, state = optimizer.update(jax.grad(weighted)(w), state, w)
        return optax.apply_updates(w, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


def doremi(
    domains: Domains,
    reference: dict,
    params: dict,
    steps: int,
    *,
    each: int,
    rate: float,
    key: jax.Array,
) -> np.ndarray:
    """The domains' weights by DoReMi (Xie et al. 2023, algorithm 1); it knows of no target.

    A model is trained on the weighted losses of `each` pieces of every domain, while weights grow
    where its loss exceeds that of the `reference`; the weights' mean over the training.
    """
    return np.asarray(_doremi(domains, reference, params, key, steps, each, rate))


@jax.jit(static_argnums=(4, 5, 6))
def _doremi(
    domains: Domains,
    reference: dict,
    params: dict,
    key: jax.Array,
    steps: int,
    each: int,
    rate: float,
) -> jax.Array:
    optimizer = optimizer_of(rate)
    number = len(domains.count)
    which = jnp.broadcast_to(jnp.arange(number)[:, None], (number, each))

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        w, state, weights = carry
        pieces = _drawn(domains, which, key)

        def losses(w: dict) -> jax.Array:
            return jax.vmap(lambda part: loss(w, None, part))(pieces)

        now, pull = jax.vjp(losses, w)
        excess = jnp.maximum(now - losses(reference), 0)
        grown = weights * jnp.exp(_STEP * excess)
        weights = (1 - _SMOOTHING) * grown / jnp.sum(grown) + _SMOOTHING / number
        updates, state = optimizer.update(pull(weights)[0], state, w)
        return (optax.apply_updates(w, updates), state, weights), weights

    start = (params, optimizer.init(params), jnp.full(number, 1 / number))
    return jnp.mean(jax.lax.scan(step, start, jax.random.split(key, steps))[1], axis=0)
