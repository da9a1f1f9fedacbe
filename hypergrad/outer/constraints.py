"""Feasible sets for the hyperparameters and the Euclidean projections on them.

An algorithm's `constraint` is `None`, one `Constraint` for the whole of `hparams`, or a pytree of
them that is a prefix of `hparams` (`{"weights": ScaledSimplex(), "l2": None}`).
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.expected import received, require


class Constraint(eqx.Module):
    """A closed convex set of hyperparameters."""

    @abstractmethod
    def project(self, hparams: PyTree) -> PyTree:
        """The nearest feasible point, a pytree like `hparams` (inexact arrays only)."""


class Box(Constraint):
    """`lower <= λ <= upper`, entry by entry.

    **Arguments:**

    - `lower`: scalar, array that broadcasts, or a pytree prefix of `hparams` of these. Default: no
      lower bound.
    - `upper`: likewise.

    **Raises:** `ValueError` if some `lower` exceeds its `upper`.
    """

    lower: PyTree = -jnp.inf
    upper: PyTree = jnp.inf

    def __check_init__(self) -> None:
        lows, highs = jax.tree.leaves(self.lower), jax.tree.leaves(self.upper)
        for name, bounds in (("lower", lows), ("upper", highs)):
            for bound in bounds:
                if not eqx.is_array(bound) and np.asarray(bound).dtype.kind not in "biuf":
                    raise ValueError(
                        f"Box: {name}: expected numbers or arrays of them, received "
                        f"{received(bound)}."
                    )
        for low, high in zip(lows, highs, strict=False):
            if bool(jnp.any(jnp.asarray(low) > jnp.asarray(high))):
                raise ValueError(
                    f"Box: expected lower <= upper, received lower={low}, upper={high}."
                )

    def project(self, hparams: PyTree) -> PyTree:
        """Clip each entry."""
        clipped = _each(jnp.maximum, self.lower, hparams)
        return _each(jnp.minimum, self.upper, clipped)


class ScaledSimplex(Constraint):
    """`λ >= 0` with entries that sum to `total`: mixing weights.

    Duchi et al., "Efficient Projections onto the l1-Ball" (2008), by sorting.

    **Arguments:**

    - `total`: the sum over all leaves together, positive. Default 1.
    """

    total: float | Scalar = 1.0

    def project(self, hparams: PyTree) -> PyTree:
        """The nearest point of the simplex."""
        flat, unravel = ravel_pytree(hparams)
        return unravel(_simplex(_wide(flat), self.total).astype(flat.dtype))


class L1Ball(Constraint):
    """`Σ |λ| <= radius`.

    **Arguments:**

    - `radius`: bound on the sum over all leaves together, positive.
    """

    radius: float | Scalar

    def project(self, hparams: PyTree) -> PyTree:
        """The nearest point of the ball: a soft threshold."""
        flat, unravel = ravel_pytree(hparams)
        size = jnp.abs(_wide(flat))
        outside = jnp.sign(flat) * _simplex(size, self.radius).astype(flat.dtype)
        return unravel(jnp.where(jnp.sum(size) <= self.radius, flat, outside))


class Budget(Constraint):
    """`0 <= λ <= upper` with entries that sum to at most `total`.

    The feasible set of data hyper-cleaning (Franceschi et al. 2017, section 5.1): one weight in
    [0, 1] per example and at most `total` examples kept.

    **Arguments:**

    - `total`: bound on the sum over all leaves together, positive.
    - `upper`: largest value of one entry. Default 1.
    """

    total: float | Scalar
    upper: float | Scalar = 1.0

    def project(self, hparams: PyTree) -> PyTree:
        """`clip(λ − θ, 0, upper)` with the smallest `θ >= 0` that meets the budget."""
        flat, unravel = ravel_pytree(hparams)
        x = _wide(flat)
        ordered = jnp.sort(x)[::-1]

        def kept(relative: Float[Array, " h"], shift: Scalar | float) -> Float[Array, " h"]:
            return jnp.clip(relative - shift, 0, self.upper)

        # θ lies within `upper` below an entry. Relative to that entry it keeps its digits, however
        # large the entries are. The sum falls with θ, so that both are found by halving.
        def nearer(_: Array, between: tuple[Array, Array]) -> tuple[Array, Array]:
            fits, over = between
            middle = (fits + over) // 2
            good = jnp.sum(kept(x - ordered[middle], 0)) <= self.total
            return jnp.where(good, middle, fits), jnp.where(good, over, middle)

        def halve(_: Array, interval: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = interval
            middle = (low + high) / 2
            over = jnp.sum(kept(relative, middle)) > self.total
            return jnp.where(over, middle, low), jnp.where(over, high, middle)

        ends = (jnp.zeros((), jnp.int32), jnp.asarray(x.size, jnp.int32))
        entry, _ = jax.lax.fori_loop(0, x.size.bit_length(), nearer, ends)
        relative = x - ordered[entry]
        start = (jnp.asarray(-self.upper, x.dtype), jnp.zeros((), x.dtype))
        _, shift = jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 8, halve, start)
        free = kept(x, 0)
        inside = jnp.sum(free) <= self.total
        return unravel(jnp.where(inside, free, kept(relative, shift)).astype(flat.dtype))


def _each(function: Any, bound: PyTree, hparams: PyTree) -> PyTree:
    """Apply a bound, a scalar or a prefix of `hparams`, to every leaf below it."""
    return jax.tree.map(
        lambda b, part: jax.tree.map(lambda x: function(x, b).astype(x.dtype), part),
        bound,
        hparams,
    )


def _wide(x: Float[Array, " h"]) -> Float[Array, " h"]:
    """In at least float32, in which sums are taken."""
    return x.astype(jnp.result_type(jnp.float32, x.dtype))


def _simplex(x: Float[Array, " h"], total: float | Scalar) -> Float[Array, " h"]:
    # A constant added to all entries changes nothing, and entries further than `total` below the
    # largest are zero in the end: so no number here is larger than `total`, whatever those of `x`.
    x = jnp.maximum(x - jnp.max(x), -jnp.asarray(total, x.dtype))
    ordered = jnp.sort(x)[::-1]
    excess = (jnp.cumsum(ordered) - total) / jnp.arange(1, x.size + 1)
    last = jnp.sum(ordered > excess) - 1
    nearest = jnp.maximum(x - excess[last], 0)
    # What the running sum has lost in many entries.
    return nearest * (total / jnp.sum(nearest))


def project(constraint: PyTree, hparams: PyTree) -> PyTree:
    """The nearest feasible point.

    **Arguments:**

    - `constraint`: `None`, a `Constraint`, or a pytree prefix of `hparams` of these.
    - `hparams`: any pytree; leaves that are not inexact arrays are carried.
    """
    dynamic, static = eqx.partition(hparams, eqx.is_inexact_array)
    if constraint is None:
        return hparams

    def is_constraint(x: Any) -> bool:
        return x is None or isinstance(x, Constraint)

    for each in jax.tree.leaves(constraint, is_leaf=is_constraint):
        if each is not None:
            require("project", "constraint", each, Constraint, "Box(0, 1)")

    projected = jax.tree.map(
        lambda c, part: part if c is None else c.project(part),
        constraint,
        dynamic,
        is_leaf=is_constraint,
    )
    return eqx.combine(projected, static)


def check_start(constraint: PyTree, hparams: PyTree, name: str = "hparams") -> None:
    """Refuse a start outside the feasible set.

    **Arguments:**

    - `constraint`, `hparams`: as for `project`.
    - `name`: what the start is called in the error.

    **Raises:** `ValueError` naming the first offending leaf, its value and the nearest feasible.
    """
    feasible = project(constraint, hparams)
    leaves = jax.tree_util.tree_leaves_with_path(hparams)
    for (path, given), nearest in zip(leaves, jax.tree.leaves(feasible), strict=True):
        if not eqx.is_inexact_array(given):
            continue
        scale = jnp.max(jnp.abs(given), initial=1.0)
        gap = jnp.abs(given - nearest)
        # Written so that a NaN start is refused, too.
        if not bool(jnp.max(gap, initial=0.0) <= 10 * jnp.finfo(given.dtype).eps * scale):
            worst = jnp.argmax(jnp.where(jnp.isnan(gap), jnp.inf, gap))
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} starts outside its constraint: expected "
                f"{jnp.ravel(nearest)[worst]} (the nearest feasible value), received "
                f"{jnp.ravel(given)[worst]}. Move the start or widen the constraint."
            )
