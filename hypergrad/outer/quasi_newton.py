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
    - `reach`: the furthest that one step may move any hyperparameter, in its own unit. Default 2,
      for hyperparameters in log space. A step that is too long has its entries cut, or is shrunk
      as a whole: whichever the quadratic model falls further by.
    """

    memory: int = eqx.field(static=True, default=10)
    reach: float = 2.0

    def __check_init__(self) -> None:
        require_count("QuasiNewton", "memory", self.memory, 0)

    def init(self, hparams: PyTree) -> LimitedMemory:
        """The memory before the first step.

        **Arguments:**

        - `hparams`: differentiable leaves only.
        """
        flat, _ = ravel_pytree(hparams)
        pairs = jnp.zeros((self.memory, flat.size), flat.dtype)
        return LimitedMemory(jnp.zeros_like(flat), pairs, pairs)

    def learn(
        self, known: LimitedMemory, step: PyTree, change: PyTree, gradient: PyTree
    ) -> LimitedMemory:
        """The memory after one more step.

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
        clipped, longest = self._clip(r * mask), jnp.max(jnp.abs(r), initial=0)
        shrink = jnp.minimum(1, self.reach / jnp.where(longest > 0, longest, 1))
        # The quadratic model falls by `p @ d - d @ B @ d / 2`, and `B @ r` is `p`.
        bent = _hessian_form(clipped, 1 / inverse, steps, changes, curved)
        gain = p @ clipped - bent / 2
        whole = jnp.where(gain >= (shrink - shrink**2 / 2) * (p @ r), clipped, shrink * r)
        # Hypergradients are inexact: where their changes mislead, the diagonal is left, which leads
        # down entry by entry.
        descent = jnp.all(jnp.isfinite(whole)) & (p @ whole > 0)
        return unravel(-jnp.where(descent, whole, self._clip(inverse * p)).astype(p.dtype))

    def _clip(self, step: Array) -> Array:
        return jnp.clip(step, -self.reach, self.reach)


def _hessian_form(d: Array, diagonal: Array, steps: Array, changes: Array, curved: Array) -> Array:
    """`d @ B @ d` for the matrix whose inverse the pairs make of `1 / diagonal`.

    Nocedal & Wright, *Numerical Optimization*, section 7.2, "unrolling the BFGS formula": each pair
    adds `y y' / y's` and takes `B s s' B / s'B s`.
    """
    if not len(steps):
        return d @ (diagonal * d)

    def extend(known: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        added, taken = known
        s, y = steps[k], changes[k]
        bs = diagonal * s + added.T @ (added @ s) - taken.T @ (taken @ s)
        sbs, ys = s @ bs, y @ s
        good = curved[k] & (sbs > 0)
        scale = [jnp.where(good, 1 / jnp.sqrt(jnp.where(good, x, 1)), 0) for x in (ys, sbs)]
        return (added.at[k].set(scale[0] * y), taken.at[k].set(scale[1] * bs)), None

    none = jnp.zeros_like(steps)
    (added, taken), _ = jax.lax.scan(extend, (none, none), jnp.arange(len(steps)))
    return d @ (diagonal * d) + jnp.sum((added @ d) ** 2) - jnp.sum((taken @ d) ** 2)


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
