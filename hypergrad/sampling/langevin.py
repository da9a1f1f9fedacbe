"""Unadjusted Langevin dynamics of a cloud of particles.

    x  <-  x − γ A Aᵀ ∇V(x) + √(2γ) A ξ,      ξ ~ N(0, I)

For small steps the particles are distributed as `exp(−V)` (Roberts & Tweedie, Bernoulli 2, 1996);
the bias is of first order in `γ`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from hypergrad.expected import require_positive
from hypergrad.sampling.problem import SamplingProblem


class Langevin(eqx.Module):
    """A step of Langevin dynamics on a problem's potential.

    **Arguments:**

    - `step`: `γ > 0`. Stable below `2 / L` for a potential whose gradient is `L`-Lipschitz (after
      the factor).
    - `factor`: `A`, a vector (diagonal) or a matrix over one particle, flat: a preconditioner for
      potentials of different curvature in different directions. Default: the identity.
    """

    step: float | Scalar
    factor: Float[Array, " d"] | Float[Array, "d d"] | None = None

    def __check_init__(self) -> None:
        require_positive("Langevin", "step", self.step)

    def move(
        self,
        problem: SamplingProblem,
        particles: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array,
    ) -> tuple[PyTree, Bool[Array, ""]]:
        """One step of every particle, and whether all of them arrived at finite places.

        **Arguments:** `particles`: a pytree of arrays with a leading axis of particles. A particle
        whose step is not finite stays where it is.
        """
        _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], particles))
        flat = jax.vmap(lambda particle: ravel_pytree(particle)[0])(particles)
        noise_key, loss_key = jax.random.split(key)

        def total(points: Array) -> Scalar:
            cloud = jax.vmap(unravel)(points)
            return jnp.sum(problem.potentials(cloud, hparams, batch, loss_key))

        slope = jax.grad(total)(flat)
        noise = jax.random.normal(noise_key, flat.shape, flat.dtype)
        if self.factor is not None:
            factor = jnp.asarray(self.factor, flat.dtype)
            if factor.shape not in {flat.shape[1:], flat.shape[1:] * 2}:
                raise ValueError(
                    f"Langevin: 'factor': expected shape ({flat.shape[1]},) or ({flat.shape[1]}, "
                    f"{flat.shape[1]}), received {factor.shape}."
                )
            wide = jnp.diag(factor) if factor.ndim == 1 else factor
            slope, noise = slope @ wide @ wide.T, noise @ wide.T
        moved = flat - self.step * slope + jnp.sqrt(2.0 * self.step) * noise
        finite = jnp.all(jnp.isfinite(moved), axis=1)
        kept = jnp.where(finite[:, None], moved, flat).astype(flat.dtype)
        return jax.vmap(unravel)(kept), jnp.all(finite)
