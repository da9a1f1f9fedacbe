"""Adam without epsilon."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hypergrad.expected import require_finite

#: Then a step is that of Adam where the mean of the gradient is as large as its root mean square.
_SCALE = 4.0 / math.pi


def adam_atan2(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam whose quotient is an arc tangent: nothing depends on the scale of the loss.

    `w ← w − η (4/π · atan2(m̂, √v̂) + weight_decay · w)`. A wide model has tiny gradients, which the
    epsilon of Adam hides; here there is none. Everett et al., "Scaling Exponents Across
    Parameterizations and Optimizers" (2024).

    **Arguments:** `learning_rate`: number or optax schedule; `b1`, `b2`: as in `optax.adam`;
    `weight_decay`: decoupled.

    **Raises:** `ValueError` for what is no finite number.
    """
    rates = {"b1": b1, "b2": b2, "weight_decay": weight_decay}
    if not callable(learning_rate) or isinstance(learning_rate, type):
        rates["learning_rate"] = learning_rate
    for name, value in rates.items():
        # An array may be traced.
        if not isinstance(value, jax.Array) or value.ndim:
            require_finite("adam_atan2", name, value)

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        # Of the gradient and its absolute values, so that squares of tiny gradients do not vanish.
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        root = jax.tree.map(
            lambda g, r: jnp.hypot(math.sqrt(b2) * r, math.sqrt(1 - b2) * g), grads, state.nu
        )
        first = 1 - b1**count
        second = jnp.sqrt(1 - b2**count)
        steps = jax.tree.map(
            lambda m, r: (_SCALE * jnp.arctan2(m / first, r / second)).astype(m.dtype), mu, root
        )
        return steps, optax.ScaleByAdamState(count, mu, root)

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
