"""Persistent evolution strategies: an unbiased derivative of a long run from short windows.

Pairs of runs go on side by side, each with hyperparameters that are a little off in opposite
directions, drawn anew for every window. What a pair's losses differ by answers to all
perturbations since the run's start, so that it is weighed with their sum `ξ`:

    dF/dλ ≈ mean over pairs of ξ (F⁺ − F⁻) / (2 σ²)

Vicol, Metz and Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs with
Persistent Evolution Strategies" (2021).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient
from hypergrad.expected import require_finite
from hypergrad.linear import vector
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.stepped import Differentiated, SteppedEstimator, positive_int


class EvolutionState(eqx.Module):
    """What persistent evolution strategies carry.

    - `params`, `step_state`: of the run without perturbation.
    - `start`: where runs begin again after `horizon` steps.
    - `others`: `(params, step state)` of the perturbed runs, two leading axes: pair, sign.
    - `sums`: `ξ`, like the hyperparameters with a leading axis over pairs; perturbations that were
      larger than `sigma` count by the inverse of their variance.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    - `steps`: taken since the runs began.
    - `inner_iterations`: steps of all runs together in the last `fit`.
    """

    params: PyTree
    step_state: PyTree
    start: PyTree
    others: PyTree
    sums: PyTree
    scale: Scalar
    steps: Int[Array, ""]
    inner_iterations: Int[Array, ""]


class PersistentEvolution(SteppedEstimator):
    """The derivative of a long run by differences between perturbed runs, window by window.

    `fit` moves all runs on by `steps` steps; `hypergradient` costs one outer loss for each run.
    Nothing is differentiated but the outer loss in the hyperparameters that it reads itself:
    chaotic runs, of which derivatives explode, and steps with jumps are no obstacle. Unlike
    `TruncatedUnrolled`, no contribution is dropped, and unlike `Unrolled` a run may be as long as
    it likes. The price is noise, which grows with the number of hyperparameters and, as the root,
    with that of the windows since the start.

    **Arguments:** `update`, `steps` (per `fit`), `initial` and `stacked` of `UnrolledEstimator`,
    and

    - `horizon`: steps after which all runs begin again, a multiple of `steps`. Default: never.
    - `pairs`: of perturbed runs; a `fit` costs `2 * pairs + 1` runs, side by side.
    - `sigma`: standard deviation of the perturbations, in units of the hyperparameters, where
      that is above the spacing of numbers in their dtype; that spacing elsewhere (bfloat16). The
      derivative is that of the loss smoothed so far in every window.

    Runs start at the first `fit` after `init` or after the horizon, each at its own perturbed
    hyperparameters: what acts through `initial`, or through the state that a step begins with, is
    in the derivative.

    Each `fit` needs its own `key`; noise of a stochastic problem is the same in all runs. The
    hyperparameters may change between fits: like `OnlineUnrolled`, the estimate then mixes them.

    `info.error` is the standard error of the mean over pairs, relative to it; infinite for one
    pair.
    """

    state_type: ClassVar[type] = EvolutionState
    horizon: int | None = eqx.field(static=True)
    pairs: int = eqx.field(static=True)
    sigma: float = eqx.field(static=True)

    def __init__(
        self,
        update: Any,
        steps: int,
        *,
        horizon: int | None = None,
        pairs: int = 8,
        sigma: float = 0.01,
        initial: Callable | None = None,
        stacked: bool = False,
    ) -> None:
        super().__init__(update, steps, initial=initial, stacked=stacked)
        self.horizon = None if horizon is None else positive_int("horizon", horizon)
        if self.horizon is not None and self.horizon % self.steps:
            raise ValueError(
                f"horizon: expected a multiple of steps={self.steps}, received {horizon}."
            )
        self.pairs = positive_int("pairs", pairs)
        require_finite("PersistentEvolution", "sigma", sigma)
        if sigma <= 0:
            raise ValueError(f"sigma: expected a positive number, received {sigma!r}.")
        self.sigma = float(sigma)

    def _init(self, given: RestrictedProblem) -> EvolutionState:
        run = self._begun(given)
        at = run.unpack(run.x, run.rest)

        def copies(leaf: Any) -> Any:
            if not eqx.is_array(leaf):
                return leaf
            return jnp.broadcast_to(leaf, (self.pairs, 2, *leaf.shape))

        return EvolutionState(
            params=at[0],
            step_state=at[1],
            start=given.params,
            # Places to be filled: the first `fit` starts each run at hyperparameters of its own.
            others=jax.tree.map(copies, at),
            sums=jax.tree.map(lambda a: jnp.zeros((self.pairs, *a.shape), a.dtype), run.h),
            scale=self._scale(given),
            steps=jnp.zeros((), jnp.int32),
            inner_iterations=jnp.zeros((), jnp.int32),
        )

    def _fit(
        self, given: RestrictedProblem, state: EvolutionState
    ) -> tuple[EvolutionState, FitInfo]:
        if given.key is None:
            raise ValueError("PersistentEvolution.fit: key: expected a key, received None.")
        draw, noise = jax.random.split(given.key)
        begins = state.steps == 0
        if self.horizon is not None:
            begins = begins | (state.steps >= self.horizon)
        given = replace(given, key=noise)
        run = self._continued(given, state.step_state)
        h, like = run.h, run.like(run.h)
        deviations = self._deviations(h, like)
        drawn = self._perturbations(deviations, draw)

        def moved(at: tuple, h: PyTree) -> tuple:
            full = eqx.combine(vector.cast_like(h, like), given.hparams)
            # Each run has a start of its own: hyperparameters act through `initial`, too, and
            # through the state that a step begins with.
            arrays, static = eqx.partition(at, eqx.is_array)
            fresh = eqx.filter(self._start(state.start, full), eqx.is_array)
            fresh = jax.tree.map(lambda a, b: jnp.where(begins, b, a), arrays, fresh)

            def begun(_: PyTree) -> tuple:
                return eqx.combine(fresh, static)

            run = self._run(replace(given, hparams=full), begun)
            return run.unpack(*run.advance(run.x, run.rest, run.h, 0, self.steps))

        def perturbed(at: tuple, epsilon: PyTree, sign: Array) -> tuple:
            return moved(at, jax.tree.map(lambda a, e: a + sign * e.astype(a.dtype), h, epsilon))

        signs = jnp.array([1.0, -1.0])
        both = eqx.filter_vmap(perturbed, in_axes=(eqx.if_array(0), None, 0))
        others = eqx.filter_vmap(both, in_axes=(eqx.if_array(0), 0, None))(
            state.others, drawn, signs
        )
        params, step_state = moved((state.params, state.step_state), h)
        taken = jnp.asarray(self.steps, jnp.int32)
        state = replace(
            state,
            params=params,
            step_state=step_state,
            others=others,
            sums=jax.tree.map(
                lambda s, e, d: jnp.where(begins, 0, s) + e * (self.sigma / d) ** 2,
                state.sums,
                drawn,
                deviations,
            ),
            steps=jnp.where(begins, 0, state.steps) + taken,
            inner_iterations=taken * (2 * self.pairs + 1),
        )
        return state, FitInfo(self._residual(given, state), taken)

    def _hypergradient(self, given: RestrictedProblem, state: EvolutionState) -> Hypergradient:
        run = self._continued(given, state.step_state)
        # No derivative in the params is taken: the outer loss may have jumps in them, too.
        (value, aux), direct = jax.value_and_grad(
            lambda h: run.outer_loss_and_aux(run.x, h), has_aux=True
        )(run.h)

        def loss(at: tuple) -> Array:
            x = eqx.filter(at, eqx.is_inexact_array)
            return run.outer_loss(x, run.h)

        over = eqx.filter_vmap(loss, in_axes=(eqx.if_array(0),))
        losses = eqx.filter_vmap(over, in_axes=(eqx.if_array(0),))(state.others)
        weights = (losses[:, 0] - losses[:, 1]) / (2.0 * self.sigma**2)
        each = jax.tree.map(lambda s: s * weights.reshape(-1, *[1] * (s.ndim - 1)), state.sums)
        mean = jax.tree.map(lambda a: jnp.mean(a, 0), each)
        spread = jax.tree.map(lambda a, m: jnp.sum((a - m) ** 2), each, mean)
        squares = sum(jax.tree.leaves(spread), jnp.zeros(()))
        count = self.pairs * (self.pairs - 1)
        grad = jax.tree.map(lambda a, d: (a + d).astype(d.dtype), mean, direct)
        error = jnp.sqrt(squares / count) if count else jnp.inf
        error = jnp.asarray(error / vector.norm(grad), value.dtype)
        found = Differentiated(run, value, aux, grad, jnp.zeros((), jnp.int32), error)
        return self._result(given, state, found)

    def _deviations(self, h: PyTree, like: PyTree) -> PyTree:
        """`sigma`, but no less than the spacing of numbers in the user's dtype.

        Rounding then acts as if it were noise, and the estimate has no bias by it; perturbations
        that are far below the spacing would be rounded away, and the derivative with them.
        """
        return jax.tree.map(
            lambda a, b: jnp.maximum(self.sigma, jnp.finfo(b.dtype).eps * jnp.abs(a)), h, like
        )

    def _perturbations(self, deviations: PyTree, key: Array) -> PyTree:
        leaves, tree = jax.tree.flatten(deviations)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            leaf * jax.random.normal(k, (self.pairs, *leaf.shape), leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, drawn)
