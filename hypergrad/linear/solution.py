"""What a linear solver gives back."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.outcome import Outcome, broke_down, met_nonpositive_curvature


class LinearSolution(eqx.Module):
    """An approximate solution of `A x = b` and how far it can be trusted.

    **Fields:**

    - `value`: `x`, a pytree like `b`. Always finite when `b` is.
    - `residual`: `‖b − A x‖ / ‖b‖` as the method knows it (zero for `b = 0`; NaN where the method
      gives a truncated answer without ever measuring it, such as `Identity`).
    - `products`: operator products spent.
    - `outcome`: how the solve ended; `Outcome[outcome]` says it in words. After a breakdown `value`
      is the last good iterate.
    - `curvature_min`, `curvature_max`: smallest and largest Rayleigh quotient (or Ritz value) seen;
      NaN when the method sees none.
    - `state`: what the solver wants to be given back at the next solve (see
      `LinearSolver.with_state`); `None` for those that remember nothing.
    """

    value: PyTree
    residual: Scalar
    products: Int[Array, ""]
    outcome: Outcome
    curvature_min: Scalar
    curvature_max: Scalar
    state: PyTree = None

    @property
    def nonpositive_curvature(self) -> Bool[Array, "..."]:
        """Whether a direction with `⟨d, A d⟩ <= 0` was met."""
        return met_nonpositive_curvature(self.outcome) | (self.curvature_min <= 0)

    @property
    def breakdown(self) -> Bool[Array, "..."]:
        """Whether a product was not finite, or the iteration broke down or diverged."""
        return broke_down(self.outcome)


class Spectrum(eqx.Module):
    """Smallest and largest Rayleigh quotient met so far, NaN before the first."""

    low: Scalar
    high: Scalar

    def met(self, quotient: Scalar) -> "Spectrum":
        """With one more quotient; a non-finite one is ignored."""
        known = jnp.where(jnp.isfinite(quotient), quotient, jnp.nan)
        return Spectrum(jnp.fmin(self.low, known), jnp.fmax(self.high, known))


def nothing_met(dtype: jnp.dtype) -> Spectrum:
    """No quotient met yet."""
    unknown = jnp.asarray(jnp.nan, dtype)
    return Spectrum(unknown, unknown)
