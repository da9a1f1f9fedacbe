"""A linear classifier for each task, trained from zero on features that all tasks share.

The classifier is the inner variable, two gradient steps its training; the encoder and the length of
the steps are the outer variable (Franceschi et al. 2018, section 5). Of one drawing of each class,
one step from zero would make a prototypical network, ten over the step its temperature.
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

# Of one, two and four steps of 0.1 to 16 about the best on another split of the alphabets.
STEP, STEPS = 4.0, 2


def initialise(key: Array) -> PyTree:
    """The encoder, and the logarithm of the step."""
    return {"layers": encoder.initialise(key), "log_step": jnp.float32(np.log(STEP))}


def classify(head: Array, features: Array) -> Array:
    """Scores of each picture of each task."""
    return jnp.einsum("tfc,twsf->twsc", head, features)


def zeros(episodes: Episodes, features: int = encoder.FEATURES) -> Array:
    """The classifiers before training."""
    return jnp.zeros((len(episodes.known), features, WAYS))


def trained(known: Array, head: Array, step: Array | float) -> Array:
    """Classifiers after two steps on features of the known drawings."""
    for _ in range(STEPS):
        head = head - step * jax.grad(lambda h: loss(classify(h, known)))(head)
    return head


def scores(weights: PyTree, episodes: Episodes) -> Array:
    """Written out: `Unrolled` does the same in a loop."""
    known, asked = (encoder.encode(weights["layers"], pictures) for pictures in episodes)
    return classify(trained(known, zeros(episodes), jnp.exp(weights["log_step"])), asked)


PROBLEM = BilevelProblem(
    lambda head, weights, known: loss(classify(head, encoder.encode(weights["layers"], known))),
    lambda head, weights, asked: (
        loss(classify(head, encoder.encode(weights["layers"], asked))) / len(asked)
    ),
)
UNROLLED = Unrolled(lambda weights: optax.sgd(jnp.exp(weights["log_step"])), STEPS)


def gradient(weights: PyTree, episodes: Episodes) -> PyTree:
    """The hypergradient through the two steps."""
    state = UNROLLED.init(PROBLEM, zeros(episodes), weights, episodes.known)
    return UNROLLED.hypergradient(PROBLEM, state, weights, *episodes).grad


METHOD = Method(initialise, scores, gradient)
