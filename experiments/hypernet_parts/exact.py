"""One penalty for each weight by exact hypergradients: what a hypernetwork could have found."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.hypernet_parts.classifier import PROBLEM, Task
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.linear import CG

# The classifier is trained to the end before each solve.
ESTIMATOR = ImplicitDifferentiation(None, CG(tol=1e-3, max_steps=200), error_estimate=False)
STEPS = 6


@jax.jit
def hypergradient(task: Task, penalties: PyTree) -> PyTree:
    """The derivative of the validation loss by implicit differentiation."""
    params = task.retrained(penalties)
    state = ESTIMATOR.init(PROBLEM, params, penalties, task.train)
    return ESTIMATOR.hypergradient(PROBLEM, state, penalties, task.train, task.valid).grad


def descend(task: Task, centre: Array) -> PyTree:
    """Six trainings, and a step after each that moves a penalty by 1/8 in the root mean square."""
    penalties = jax.tree.map(lambda w: jnp.full_like(w, centre), task.zeros)
    length = jnp.sqrt(sum(leaf.size for leaf in jax.tree.leaves(penalties))) / 8
    for _ in range(STEPS):
        slope = hypergradient(task, penalties)
        scale = length / optax.global_norm(slope)
        penalties = jax.tree.map(lambda lam, g, s=scale: lam - s * g, penalties, slope)
    return penalties


def cosine(a: PyTree, b: PyTree) -> Scalar:
    """Of the angle between two gradients."""
    products = jax.tree.map(jnp.vdot, a, b)
    return sum(jax.tree.leaves(products)) / (optax.global_norm(a) * optax.global_norm(b))
