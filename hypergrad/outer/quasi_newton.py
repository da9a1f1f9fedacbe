"""Quasi-Newton directions for the hyperparameters, from the hypergradients of the last steps.

Limited-memory BFGS (Nocedal & Wright, *Numerical Optimization*, section 7.2). The matrix that the
pairs of steps and changes of the gradient correct is diagonal: `1 / d`, with `d` the root of a
running mean of the squared hypergradients (RMSProp; Tieleman & Hinton 2012). It makes the first
step one unit in every hyperparameter and suits effects that differ by orders of magnitude, as those
of penalties on features do; a multiple of the identity, the textbook's choice, does not.

Hyperparameters at a bound that the hypergradient pushes against are left out of the pairs and of
the direction (Bertsekas, "Projected Newton methods", 1982).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from hypergrad.expected import require_count
from hypergrad.outer.base import OuterAlgorithm
from hypergrad.outer.constraints import Box, Constraint

# What of the mean of squares an old square keeps at each step. Of 0.5, 0.8, 0.9 and 0.95 the
# cheapest on five splits of digits that `experiments.hoag` does not judge (seeds 100 to 104).
KEPT = 0.8


class LimitedMemory(eqx.Module):
    """What L-BFGS remembers of the outer loss; `n` hyperparameters, `m` pairs.

    - `squares`: `(n,)`, running mean of the squared hypergradients.
    - `steps`, `changes`: `(m, n)`, the last steps and what they changed the hypergradient by, the
      newest last; rows of zeros where there are none yet.
    """

    squares: Float[Array, " n"]
    steps: Float[Array, "m n"]
    changes: Float[Array, "m n"]


class QuasiNewton(eqx.Module):
    """How to turn hypergradients into directions.

    **Arguments:**

    - `memory`: pairs kept, each of twice the size of the hyperparameters. Default 10; 0 leaves the
      diagonal.
    - `reach`: the furthest that one step may move any hyperparameter, in its own unit, and those
      that move in the root mean square. Default 2, for hyperparameters in log space.
    """

    memory: int = eqx.field(static=True, default=10)
    reach: float = 2.0

    def __check_init__(self) -> None:
        require_count("QuasiNewton", "memory", self.memory, 0)

    def init(self, hparams: PyTree) -> LimitedMemory:
        """Nothing known.

        **Arguments:**

        - `hparams`: differentiable leaves only.
        """
        flat, _ = ravel_pytree(hparams)
        pairs = jnp.zeros((self.memory, flat.size), flat.dtype)
        return LimitedMemory(jnp.zeros_like(flat), pairs, pairs)

    def learn(
        self, known: LimitedMemory, step: PyTree, change: PyTree, gradient: PyTree
    ) -> LimitedMemory:
        """With one more step.

        **Arguments:**

        - `step`: taken, a pytree like the hyperparameters; zeros for the first point.
        - `change`: of the hypergradient by it.
        - `gradient`: after it.
        """
        (s, _), (y, _), (p, _) = map(ravel_pytree, (step, change, gradient))
        share = jnp.where(jnp.any(known.squares > 0), 1 - KEPT, 1)
        squares = known.squares + share * (p**2 - known.squares)
        if not self.memory:
            return LimitedMemory(squares, known.steps, known.changes)
        return LimitedMemory(
            squares,
            jnp.concatenate([known.steps[1:], s[None]]),
            jnp.concatenate([known.changes[1:], y[None]]),
        )

    def direction(
        self, known: LimitedMemory, gradient: PyTree, free: PyTree[Bool[Array, " ..."]]
    ) -> PyTree:
        """Where to go, a pytree like the hyperparameters: a descent direction.

        **Arguments:**

        - `known`: what `learn` returned.
        - `gradient`: the hypergradient.
        - `free`: for each entry, whether it may move; the others are given no direction.
        """
        p, unravel = ravel_pytree(gradient)
        mask = ravel_pytree(free)[0].astype(p.dtype)
        p = p * mask
        root = jnp.sqrt(known.squares)
        top = jnp.max(root, initial=0)
        # A hyperparameter without any effect so far must not take the longest steps of all.
        inverse = 1 / jnp.maximum(root, jnp.where(top > 0, 1e-3 * top, 1))
        steps, changes = known.steps * mask, known.changes * mask
        products = jnp.sum(steps * changes, axis=1)
        sizes = jnp.linalg.norm(steps, axis=1) * jnp.linalg.norm(changes, axis=1)
        curved = products > 1e-8 * sizes
        weights = jnp.where(curved, 1 / jnp.where(curved, products, 1), 0)

        def back(q: Array, pair: tuple) -> tuple[Array, Array]:
            s, y, weight = pair
            along = weight * (s @ q)
            return q - along * y, along

        def forth(r: Array, pair: tuple) -> tuple[Array, None]:
            s, y, weight, along = pair
            return r + (along - weight * (y @ r)) * s, None

        pairs = (steps, changes, weights)
        q, along = jax.lax.scan(back, p, pairs, reverse=True)
        r, _ = jax.lax.scan(forth, inverse * q, (*pairs, along))
        whole, diagonal = self._within(r * mask), self._within(inverse * p)
        # Hypergradients are inexact, and a bounded direction is another one: where it leads up, the
        # diagonal is left, which leads down entry by entry.
        descent = jnp.all(jnp.isfinite(whole)) & (p @ whole > 0)
        return unravel(-jnp.where(descent, whole, diagonal).astype(p.dtype))

    def _within(self, step: Array) -> Array:
        """`step`, shrunk until its typical entry is within reach, and its outliers clipped.

        Clipping alone would leave no more than signs of a step whose entries are all too long;
        shrinking alone would stop them all for one that is on its way to a bound.
        """
        moving = jnp.maximum(jnp.count_nonzero(step), 1)
        typical = jnp.sqrt(jnp.sum(step**2) / moving)
        shrink = jnp.minimum(1, self.reach / jnp.where(typical > 0, typical, 1))
        return jnp.clip(shrink * step, -self.reach, self.reach)


def require_entrywise(algorithm: OuterAlgorithm, metric: QuasiNewton | None) -> None:
    """Refuse a metric under a constraint that couples the hyperparameters.

    **Raises:** `ValueError` naming the algorithm and the set.
    """
    sets = jax.tree.leaves(algorithm.constraint, is_leaf=lambda x: isinstance(x, Constraint))
    odd = [type(x).__name__ for x in sets if not isinstance(x, Box)]
    if metric is not None and odd:
        raise ValueError(
            f"{type(algorithm).__name__}: with a metric expected a constraint that holds entry by "
            f"entry (Box), received {', '.join(odd)}. Drop the metric."
        )
