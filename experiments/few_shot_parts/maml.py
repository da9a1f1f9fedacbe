"""Model-agnostic meta-learning: weights from which four gradient steps solve a task.

The whole network is the inner variable, its initial value and the length of the steps are the outer
one, and derivatives are of second order (Finn, Abbeel and Levine 2017, arXiv:1703.03400).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments.few_shot_parts import encoder
from experiments.few_shot_parts.episodes import WAYS, Episodes, loss
from experiments.few_shot_parts.method import Method
from hypergrad import BilevelProblem
from hypergrad.unrolled import Unrolled

# Of 0.03, 0.1 and 0.4 the best on another split of the alphabets.
STEP, STEPS = 0.1, 4


def initialise(key: Array) -> PyTree:
    """The network before a task, and the logarithm of the step."""
    head = jnp.zeros((encoder.FEATURES, WAYS))
    network = {"layers": encoder.initialise(key), "head": head}
    return {"network": network, "log_step": jnp.float32(np.log(STEP))}


def classify(networks: PyTree, pictures: Array) -> Array:
    """Scores of each picture of each task, by the task's network."""

    def one(network: PyTree, pictures: Array) -> Array:
        return encoder.encode(network["layers"], pictures) @ network["head"]

    return jax.vmap(one)(networks, pictures)


def for_each(episodes: Episodes, network: PyTree) -> PyTree:
    """The same network for each task."""
    tasks = len(episodes.known)
    return jax.tree.map(lambda w: jnp.broadcast_to(w, (tasks, *w.shape)), network)


def scores(weights: PyTree, episodes: Episodes) -> Array:
    """Written out: `Unrolled` does the same in a loop."""
    networks = for_each(episodes, weights["network"])
    for _ in range(STEPS):
        slope = jax.grad(lambda n: loss(classify(n, episodes.known)))(networks)
        networks = jax.tree.map(lambda w, g: w - jnp.exp(weights["log_step"]) * g, networks, slope)
    return classify(networks, episodes.asked)


PROBLEM = BilevelProblem(
    lambda networks, weights, known: loss(classify(networks, known)),
    lambda networks, weights, asked: loss(classify(networks, asked)) / len(asked),
)
UNROLLED = Unrolled(
    lambda weights: optax.sgd(jnp.exp(weights["log_step"])),
    STEPS,
    initial=lambda networks, weights: jax.tree.map(
        lambda many, one: jnp.broadcast_to(one, many.shape), networks, weights["network"]
    ),
)


def gradient(weights: PyTree, episodes: Episodes) -> PyTree:
    """The derivative by the start of the four steps, and by their length."""
    networks = for_each(episodes, weights["network"])
    state = UNROLLED.init(PROBLEM, networks, weights, episodes.known)
    return UNROLLED.hypergradient(PROBLEM, state, weights, *episodes).grad


METHOD = Method(initialise, scores, gradient)
