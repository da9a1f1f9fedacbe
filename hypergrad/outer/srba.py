"""SRBA: the single-loop method with the recursive variance reduction of SARAH on every term.

Dagréou, Moreau, Vaiter & Ablin, "A lower bound and a near-optimal algorithm for bilevel empirical
risk minimization" (2023), algorithm 1. The directions `D` of `hypergrad.outer.single_loop` are
computed on all data every `period` steps, and in between follow, with one mini-batch at two points,

    Δ_k = D(z_k; ξ_k) − D(z_{k−1}; ξ_k) + Δ_{k−1}

so that step sizes stay constant, and nothing is kept for each block of the data.
"""

import jax.numpy as jnp
import optax
from jaxtyping import PyTree, Scalar

from hypergrad.expected import require_count
from hypergrad.linear import vector
from hypergrad.outer import loops
from hypergrad.outer.base import OuterInfo
from hypergrad.outer.batches import Batches
from hypergrad.outer.moving import DESCENT
from hypergrad.outer.recursive_momentum import recursion
from hypergrad.outer.single_loop import (
    InnerTerms,
    OuterTerms,
    SingleLoopAlgorithm,
    SingleLoopState,
    inner_terms,
    outer_terms,
)
from hypergrad.restricted import RestrictedProblem


class SRBAState(SingleLoopState):
    """The single-loop state, the point before, and the estimates of all terms there."""

    last_params: PyTree
    last_hparams: PyTree
    last_adjoint: PyTree
    terms: tuple[InnerTerms, OuterTerms]


class SRBA(SingleLoopAlgorithm):
    """Stochastic recursive bilevel algorithm.

    Takes any mini-batches (`Minibatches(size, policy="same")`). A step costs eight gradient-like
    calls, one in `period` a pass over all data.

    **Arguments:**

    - `optimizer`: optax optimizer of the hyperparameters. Default: gradient descent with 0.1.
    - `step_size`: constant step size of the inner parameters and of the adjoint; below
      `2 / λ_max(∂²f/∂w²)`, and safely a third of that. Default 0.1.
    - `period`: steps from one pass over all data to the next. Default: as many as half of the
      training and validation mini-batches in a pass, so that passes cost about as much as the rest.
    - `radius`: the adjoint is kept within `radius ‖∂F/∂w‖`. Default 1e3.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`.

    The outer loss reported is the mini-batch's, or that of all data where these were passed over.
    """

    optimizer: optax.GradientTransformation = DESCENT
    step_size: float | Scalar = 0.1
    period: int | None = None
    radius: float | Scalar = 1e3
    constraint: PyTree = None

    def __check_init__(self) -> None:
        if self.period is not None:
            require_count("SRBA", "period", self.period)

    def _start(self, here: RestrictedProblem, batches: Batches) -> SRBAState:
        w, h = vector.zeros_like((here.w, here.h))
        return self._with_adjoint(
            SRBAState,
            here,
            last_params=here.params,
            last_hparams=here.hparams,
            last_adjoint=w,
            terms=(InnerTerms(w, w, h), OuterTerms(w, h)),
        )

    def _advance(
        self, here: RestrictedProblem, state: SRBAState, batches: Batches
    ) -> tuple[SRBAState, OuterInfo]:
        point = (state.params, state.hparams, state.adjoint)
        before = (state.last_params, state.last_hparams, state.last_adjoint)

        def terms(
            data: Batches, params: PyTree, hparams: PyTree, adjoint: PyTree
        ) -> tuple[Scalar, tuple[InnerTerms, OuterTerms]]:
            there = data.restrict(here.problem, params, hparams, here.key)
            value, outer = outer_terms(there)
            return value, (inner_terms(there, adjoint), outer)

        def recursed() -> tuple[Scalar, tuple[InnerTerms, OuterTerms]]:
            value, new = terms(batches, *point)
            _, old = terms(batches, *before)
            return value, recursion(new, old, state.terms)

        inner_passes, outer_passes = batches.passes
        period = max((inner_passes + outer_passes) // 2, 1) if self.period is None else self.period
        whole = state.step % period == 0
        value, (inner, outer) = loops.cond(
            whole, lambda: terms(batches.everything, *point), recursed
        )
        return self._all_moved(
            state,
            value,
            inner,
            outer,
            jnp.asarray(self.step_size, value.dtype),
            calls=jnp.where(whole, 3 * inner_passes + outer_passes, 8),
            changes={
                "last_params": state.params,
                "last_hparams": state.hparams,
                "last_adjoint": state.adjoint,
                "terms": (inner, outer),
            },
        )
