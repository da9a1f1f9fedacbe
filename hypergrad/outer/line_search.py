"""Backtracking on outer losses that are known up to bounds.

A step is accepted where the bounds prove that the loss decreases, and refuted where they prove that
it does not. Where they leave it open, a shorter step may be easier to judge, or a higher accuracy.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.outer import loops
from hypergrad.outer.base import differentiable
from hypergrad.outer.certified import Accuracy, CertifiedPoint, Certifier

# Even halved step sizes are then below the rounding error of any first one.
MAX_ATTEMPTS = 100


class LineSearch(eqx.Module):
    """A line search.

    - `size`: the step size to try next, or found.
    - `first`: the largest one that has not been refuted.
    - `attempts`, `open`: how many were tried, and how many of them left undecided.
    - `value`, `estimator_state`: of the last point tried.
    - `calls`, `iterations`: gradient-like evaluations and inner iterations spent.
    """

    size: Scalar
    first: Scalar
    attempts: Int[Array, ""]
    open: Int[Array, ""]
    accepted: Array
    value: Scalar
    estimator_state: Any
    calls: Int[Array, ""]
    iterations: Int[Array, ""]


def not_searched(size: Scalar, point: CertifiedPoint) -> LineSearch:
    """The search from `point` before its first attempt."""
    zero = jnp.zeros((), jnp.int32)
    no = jnp.asarray(False)
    return LineSearch(size, size, zero, zero, no, point.value, point.estimator_state, zero, zero)


def backtrack(
    certifier: Certifier,
    point: CertifiedPoint,
    hparams: PyTree,
    candidate: Callable[[Scalar], PyTree],
    size: Scalar,
    accuracy: Accuracy,
    *,
    decrease: float | Scalar,
    factor: float | Scalar,
    undecided: int | Array,
) -> LineSearch:
    """Shorten the step until a decrease is certain.

    **Arguments:**

    - `certifier`: evaluates the outer loss.
    - `point`, `hparams`: where the search starts.
    - `candidate`: step size to hyperparameters.
    - `size`: the first step size.
    - `accuracy`: of all solves.
    - `decrease`: share of `⟨z, λ − λ⁺⟩` by which the loss must fall.
    - `factor`: of a rejected step size.
    - `undecided`: after so many step sizes that the bounds leave open the search is given up.
    """

    def attempt(now: LineSearch) -> LineSearch:
        moved = candidate(now.size)
        loss = certifier.loss(now.estimator_state, moved, accuracy, point.adjoint)
        back = vector.sub(differentiable(hparams), differentiable(moved))
        needed = decrease * vector.vdot(point.gradient, back)
        accepted = loss.upper <= point.lower - needed
        refuted = ~(loss.lower <= point.upper - needed)
        smaller = (now.size * factor).astype(size.dtype)
        # A diverged trial must not be where the next one starts.
        sound = vector.all_finite(differentiable(loss.estimator_state.params))
        return LineSearch(
            size=jnp.where(accepted, now.size, smaller),
            first=jnp.where(refuted, smaller, now.first),
            attempts=now.attempts + 1,
            open=now.open + jnp.where(refuted, 0, 1),
            accepted=accepted,
            value=loss.value,
            estimator_state=vector.where(sound, loss.estimator_state, point.estimator_state),
            calls=now.calls + loss.calls,
            iterations=now.iterations + loss.iterations,
        )

    return loops.while_loop(
        lambda now: ~now.accepted & (now.open < undecided) & (now.attempts < MAX_ATTEMPTS),
        attempt,
        not_searched(size, point),
    )
