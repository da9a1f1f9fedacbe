"""Losses of a linear predictor, entry by entry."""

import jax
from jaxtyping import Array


def half_squared_error(output: Array, y: Array) -> Array:
    """Half the squared error."""
    return 0.5 * (output - y) ** 2


def logistic(output: Array, y: Array) -> Array:
    """Negative log likelihood of a logit, for `y` in {0, 1}."""
    return jax.nn.softplus(output) - y * output


def multinomial(output: Array, y: Array) -> Array:
    """Negative log likelihood of logits, for `y` one-hot."""
    return -y * jax.nn.log_softmax(output)


def squared_hinge(output: Array, y: Array) -> Array:
    """Squared hinge loss of a margin, for `y` in {0, 1}."""
    return jax.nn.relu(1.0 - (2.0 * y - 1.0) * output) ** 2
