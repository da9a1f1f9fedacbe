"""The scale at which hyperparameters are perturbed, fixed or learned with an entropy term.

A response to hyperparameters can only be learned where they move. Too small a scale leaves the
response unidentified, too large a one asks for a global response from a local form. MacKay et al.
(2019) learn the scale by descending

    E_ε[F(λ + σ ε)] − τ Σ_j log(σ_j √(2πe)),      ε ~ N(0, I), σ = softplus(ρ)

on validation batches: the loss shrinks σ_j where the response is poor, the entropy widens it.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Scalar

from hypergrad.expected import require_finite, require_numbers, require_optimizer


class PerturbationState(eqx.Module):
    """`raw` is `ρ` with `σ = softplus(ρ)`; `optimizer` is the state of the scale's optimizer."""

    raw: Float[Array, " h"]
    optimizer: Any = None


class Perturbation(eqx.Module):
    """Gaussian perturbation of hyperparameters with standard deviation `scale`.

    **Arguments:**

    - `scale`: initial standard deviation, in the units of the (unconstrained) hyperparameters: a
      number for all, or a vector with one entry for each. Default 0.5.
    - `optimizer`: an optax optimizer for `ρ`. `None` (the default) keeps the scale fixed.
    - `entropy`: the weight `τ` of the entropy term. Used with `optimizer` only. Default 1e-3.
    - `minimum`, `maximum`: the scale is kept between the two. Defaults 1e-3 and 5.

    Raises `ValueError` for a scale that is not positive: at zero the response cannot be learned.
    """

    scale: Any = 0.5
    optimizer: optax.GradientTransformation | None = eqx.field(static=True, default=None)
    entropy: float = 1e-3
    minimum: float = eqx.field(static=True, default=1e-3)
    maximum: float = eqx.field(static=True, default=5.0)

    def __check_init__(self) -> None:
        if self.optimizer is not None:
            require_optimizer("Perturbation", self.optimizer)
        for name in ("minimum", "maximum"):
            require_finite("Perturbation", name, getattr(self, name))
        if not isinstance(self.entropy, jax.core.Tracer):
            array = isinstance(self.entropy, np.ndarray | jax.Array) and self.entropy.ndim == 0
            plain: Any = self.entropy
            require_finite("Perturbation", "entropy", plain.item() if array else plain)
        if not 0 < self.minimum < self.maximum:
            raise ValueError(
                "Perturbation: expected 0 < minimum < maximum, "
                f"received minimum={self.minimum}, maximum={self.maximum}."
            )
        if isinstance(self.scale, jax.core.Tracer):
            return
        scale = require_numbers("Perturbation", "scale", self.scale)
        if scale.ndim > 1 or not np.all(np.isfinite(scale) & (scale > 0)):
            raise ValueError(
                f"Perturbation: `scale`: expected a positive number, received {self.scale}. "
                "Without a perturbation "
                "the response to the hyperparameters cannot be identified."
            )
        if self.optimizer is not None and (
            np.any(scale < self.minimum) or np.any(scale > self.maximum)
        ):
            raise ValueError(
                f"Perturbation: `scale`={self.scale} is outside the range "
                f"[{self.minimum}, {self.maximum}] in which it is to be learned: expected one "
                "within."
            )

    @property
    def adaptive(self) -> bool:
        """Whether the scale is learned."""
        return self.optimizer is not None

    def init(self, size: int, dtype: Any = jnp.float32) -> PerturbationState:
        """The state for `size` hyperparameters."""
        scale = jnp.asarray(self.scale, dtype)
        if scale.ndim == 1 and scale.shape != (size,):
            raise ValueError(
                f"Perturbation: `scale` has shape {scale.shape}; expected a number or one entry "
                f"for each of the {size} hyperparameters."
            )
        raw = jnp.broadcast_to(scale + jnp.log(-jnp.expm1(-scale)), (size,))
        return PerturbationState(raw, self.optimizer.init(raw) if self.optimizer else None)

    def value(self, state: PerturbationState) -> Float[Array, " h"]:
        """The standard deviations `σ`."""
        return jax.nn.softplus(state.raw)

    def bonus(self, sigma: Float[Array, " h"]) -> Scalar:
        """`τ` times the entropy of the perturbation."""
        return self.entropy * jnp.sum(jnp.log(sigma) + 0.5 * math.log(2 * math.pi * math.e))

    def step(self, state: PerturbationState, gradient: Float[Array, " h"]) -> PerturbationState:
        """One optimizer step on `ρ`, given the derivative of the outer objective by `σ`.

        A gradient that is not finite leaves the state as it is.
        """
        if self.optimizer is None:
            return state
        by_raw = gradient * jax.nn.sigmoid(state.raw)
        updates, optimizer = self.optimizer.update(by_raw, state.optimizer, state.raw)
        raw = jnp.clip(state.raw + updates, _inverse(self.minimum), _inverse(self.maximum))
        new = PerturbationState(raw, optimizer)
        finite = jnp.all(jnp.isfinite(gradient))
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    def halve(self, state: PerturbationState) -> PerturbationState:
        """Half the scale, not below `minimum`: the answer to a loss that was not finite."""
        sigma = jnp.maximum(self.value(state) / 2, jnp.minimum(self.minimum, self.value(state)))
        raw = sigma + jnp.log(-jnp.expm1(-sigma))
        return eqx.tree_at(lambda s: s.raw, state, raw)


def _inverse(scale: float) -> float:
    return scale + math.log(-math.expm1(-scale))
