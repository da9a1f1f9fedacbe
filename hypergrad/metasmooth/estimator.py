"""Hypergradients that are trusted as far as the training is metasmooth."""

from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient
from hypergrad.expected import require_count, require_seed
from hypergrad.implicit.trains import check_trains
from hypergrad.metasmooth.moves import noise_of, smoothness_of
from hypergrad.metasmooth.steps import check_step, flat, step_sizes
from hypergrad.outcome import Outcome
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator, begun, differentiated, fitted


class MetasmoothState(eqx.Module):
    """The estimator's state now and before its last `fit`, and what was found.

    - `metasmoothness`: at the last hypergradient, the mean over the directions; NaN before.
    """

    now: Any
    before: Any
    metasmoothness: Scalar
    calls: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The current inner point."""
        return self.now.params


class Metasmooth(RestrictedEstimator):
    """Any estimator, with the metasmoothness of the training in `info.error`.

    The last `fit` and the run are made again at `λ`, `λ + d` and `λ + 2d`, for random `d` of the
    size of a step that one would take, all with the batch and the key of the hypergradient. From
    the metasmoothness `S` of the moves of `params` (see `metasmoothness`) follows how much of a
    move is noise (`hypergrad.metasmooth.moves`):

        √((4 − (1 + S)²) / ((1 + S)² − 1)),

    and `info.error` is the larger of this and the estimator's own. It exceeds 1 below `S = 0.58`.
    All who read `info.error` then know: `hypergradient(..., strict=True)` raises and names the
    cause, `Alternating` leaves the hyperparameters where they are, searchers do without the
    gradient, and trust a noisy one less.

    Costs one training, and two a direction, without derivatives, besides the estimator's own.

    **Arguments:**

    - `estimator`: one that trains (`Unrolled`, `ImplicitDifferentiation(solver)`).
    - `step`: how far a hyperparameter is moved; a positive number for all of them, or a pytree
      like `hparams` of such numbers.
    - `directions`: how many random directions, at least 1. Default 1: the mean over the parameters
      is a mean over many.
    - `seed`: of the directions; each call has its own.
    """

    state_type: ClassVar[type] = MetasmoothState
    estimator: Estimator
    step: PyTree
    directions: int = eqx.field(static=True, default=1)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        check_trains(self.estimator, "it trains at other hyperparameters, too")
        require_count("Metasmooth", "directions", self.directions)
        require_seed("Metasmooth", self.seed)
        check_step(self.step)

    def of_one_draw(self, problem: BilevelProblem) -> bool:
        """See `Estimator.of_one_draw`."""
        return self.estimator.of_one_draw(problem)

    def _init(self, given: RestrictedProblem) -> MetasmoothState:
        state = begun(self.estimator, given)
        unknown = jnp.full((), jnp.nan, flat(state.params).dtype)
        return MetasmoothState(state, state, unknown, jnp.zeros((), jnp.int32))

    def _fit(
        self, given: RestrictedProblem, state: MetasmoothState
    ) -> tuple[MetasmoothState, FitInfo]:
        now, info = fitted(self.estimator, given, state.now)
        return MetasmoothState(now, state.now, state.metasmoothness, state.calls), info

    def _hypergradient(self, given: RestrictedProblem, state: MetasmoothState) -> Hypergradient:
        out = differentiated(self.estimator, given, state.now)
        start, unravel = ravel_pytree(given.h)
        signs = jax.random.rademacher(
            jax.random.fold_in(jax.random.key(self.seed), state.calls),
            (self.directions, start.size),
            start.dtype,
        )
        moves = signs * step_sizes(self.step, given.h)

        def end(move: Array) -> Array:
            there = replace(given, hparams=given.hparams_at(unravel(start + move)))
            trained, _ = fitted(self.estimator, there, state.before)
            # The derivative is not asked for, and the compiler leaves it out.
            return flat(differentiated(self.estimator, there, trained).state.params)

        # The state may have been fitted to another batch, with another key: where the moves begin
        # is a training like those at their ends.
        ends = jax.lax.map(end, jnp.concatenate([jnp.zeros_like(moves[:1]), moves, 2 * moves]))
        once, twice = ends[1 : self.directions + 1], ends[self.directions + 1 :]
        smooth = jnp.mean(smoothness_of(once - ends[0], twice - once))
        noise = noise_of(smooth)
        error = out.info.error_with(noise)
        usable = ~out.info.breakdown
        outcome = Outcome.where((noise > 1) & usable, Outcome.not_metasmooth, out.info.outcome)
        info = eqx.tree_at(lambda i: (i.error, i.outcome), out.info, (error, outcome))
        new = MetasmoothState(out.state, out.state, smooth, state.calls + 1)
        return Hypergradient(out.value, out.grad, new, info, out.aux)
