"""HyperDistill: the derivative through a whole run, distilled into that of one step.

Lee, Lee, Shin, Yang, Hospedales & Hwang, "Online hyperparameter meta-learning with hypergradient
distillation" (2022). With `A_i`, `B_i` of `hypergrad.unrolled.reverse` and `α = ∂g/∂w` at step `t`,
the derivative through the steps is taken to be that of a run which forgets at one rate `γ`,

    Σ_{i ≤ t} (A_t ⋯ A_{i+1} B_i)ᵀ α  ≈  θ S_t B(w*, D*)ᵀ α,        S_t = Σ_{i ≤ t} γ^{t−i}

where one step is differentiated, at a mean of the points gone through and on one of their batches:

    w*_t = p w*_{t−1} + (1 − p) w_{t−1},        p = (S_t − 1) / S_t
    D*_t = D*_{t−1} with probability p, else D_t

The factor `θ` is a regression of true on distilled derivatives, at the end of some runs, along the
straight line from their start to their end (Fu, Luo, Feng, Low & Chua, "DrMAD", 2016).
"""

from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient
from hypergrad.expected import require_count, require_finite
from hypergrad.linear import vector
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.effect import require_effect
from hypergrad.unrolled.run import Dynamics
from hypergrad.unrolled.stepped import Differentiated, SteppedEstimator


class HyperDistillState(eqx.Module):
    """What the estimator carries.

    - `params`, `step_state`: the current inner point and the inner step's own state there.
    - `start`: params at the start of every run.
    - `distilled`: `w*`, like the differentiable part of `(params, step_state)`.
    - `batch`: `D*`.
    - `mass`: `S_t`; 0 before the first step of a run.
    - `factor`: `θ`; 1 before the first estimate.
    - `taken`: steps of the current run, `t`.
    - `runs`: runs that have ended.
    - `scale`: the larger of `‖∂f/∂w‖` and `‖H w‖` at the point given to `init`.
    """

    params: PyTree
    step_state: PyTree
    start: PyTree
    distilled: PyTree
    batch: PyTree
    mass: Scalar
    factor: Scalar
    taken: Int[Array, ""]
    runs: Int[Array, ""]
    scale: Scalar

    @property
    def inner_iterations(self) -> Int[Array, ""]:
        """One step is what every `fit` takes."""
        return jnp.ones((), jnp.int32)


class HyperDistill(SteppedEstimator):
    """Hypergradients at every step of a training run, at the price of one step's derivative.

    Each `fit` takes one step; after `steps` of them the next begins a new run at the params given
    to `init`. With `Alternating` the hyperparameters move after every step, online. Time and memory
    depend neither on the length of a run nor on the number of hyperparameters.

    The derivative through a run is taken to be that of a single step at `w*`, a mean of the points
    gone through, on `D*`, one of their batches, times a sum of powers of `γ` and a factor `θ`.

    **Arguments:**

    - `update`: the inner step; see `UnrolledEstimator`.
    - `steps`: length of a run.
    - `decay`: `γ`, by which a step's effect shrinks in the next. With `1 − lr μ` of plain gradient
      descent on a loss of curvature `μ` in all directions the derivative is exact. Default 0.99.
    - `every`: runs from one estimate of `θ` to the next, the first at the end of the first run. An
      estimate costs twice the derivative of a run, without its memory. Default 50.

    Give each `fit` its own key, by which `D*` is drawn; without one `D*` is the newest batch. The
    state holds one batch. `info.error` is NaN: not known.
    """

    state_type: ClassVar[type] = HyperDistillState
    decay: float | Scalar
    every: int = eqx.field(static=True)

    def __init__(
        self, update: Any, steps: int, *, decay: float | Scalar = 0.99, every: int = 50
    ) -> None:
        super().__init__(update, steps)
        require_count("HyperDistill", "every", every)
        if not isinstance(decay, jax.Array):
            require_finite("HyperDistill", "decay", decay)
            if not 0 <= decay <= 1:
                raise ValueError(f"HyperDistill: decay: expected a share, received {decay!r}.")
        self.decay = decay
        self.every = every

    def _init(self, given: RestrictedProblem) -> HyperDistillState:
        run = self._begun(given)
        scale = self._scale(given)
        at, step_state = run.unpack(run.x, run.rest)
        zero = jnp.zeros((), jnp.int32)
        return HyperDistillState(
            params=at,
            step_state=step_state,
            start=at,
            distilled=run.x,
            batch=given.inner_batch,
            mass=jnp.zeros_like(scale),
            factor=jnp.ones_like(scale),
            taken=zero,
            runs=zero,
            scale=scale,
        )

    def _fit(
        self, given: RestrictedProblem, state: HyperDistillState
    ) -> tuple[HyperDistillState, FitInfo]:
        given = replace(given, params=state.start)
        self._check(given)
        ended = state.taken >= self.steps
        fresh = self._start(state.start, given.hparams)
        point = vector.where(ended, fresh, (state.params, state.step_state))
        before = jnp.where(ended, 0, state.taken)
        run = self._run(given, lambda _: point)
        x, rest = run(run.x, run.rest, run.h, before)
        params, step_state = run.unpack(x, rest)
        mass = 1 + self.decay * jnp.where(ended, 0, state.mass)
        keep = (mass - 1) / mass
        distilled = jax.tree.map(
            lambda old, now: (keep * old + (1 - keep) * now).astype(old.dtype),
            state.distilled,
            run.x,
        )
        # The steps get the numbers below.
        draw = None if given.key is None else jax.random.fold_in(given.key, self.steps)
        kept = False if draw is None else jax.random.bernoulli(draw, keep)
        state = replace(
            state,
            params=params,
            step_state=step_state,
            distilled=distilled,
            batch=vector.where(kept, state.batch, given.inner_batch),
            mass=mass.astype(state.mass.dtype),
            taken=before + 1,
            runs=state.runs + (before + 1 == self.steps),
        )
        return state, FitInfo(self._residual(given, state), state.inner_iterations)

    def _hypergradient(self, given: RestrictedProblem, state: HyperDistillState) -> Hypergradient:
        at = replace(given, inner_batch=state.batch)
        run = self._continued(at, state.step_state)
        run = require_effect(run, 0, 1, estimator=type(self).__name__, from_start=False)
        value, aux, cotangent, direct = run.outer_derivative(run.x)

        due = (state.taken == self.steps) & ((state.runs - 1) % self.every == 0)
        start = self._run(at, lambda hparams: self._start(state.start, hparams))
        factor = jax.lax.cond(
            due,
            lambda: self._regress(run, start.x, cotangent).astype(state.factor.dtype),
            lambda: state.factor,
        )
        through = _pull(run, state.distilled, cotangent)
        grad = vector.axpy(factor * state.mass, through, direct)
        steps = 1 + jnp.where(due, 2 * self.steps, 0)
        unknown = jnp.full((), jnp.nan, state.scale.dtype)
        state = eqx.tree_at(lambda s: s.factor, state, factor)
        found = Differentiated(run, value, aux, grad, steps, unknown)
        return self._result(given, state, found)

    def _regress(self, run: Dynamics, start: PyTree, cotangent: PyTree) -> Scalar:
        """`θ` by least squares over the last 1, 2, …, `steps` steps of a run that has ended.

        The true derivatives go back along the line from `start` to the end; the distilled ones are
        taken at the mean of the same points.
        """

        def back(carry: tuple, behind: Array) -> tuple[tuple, tuple]:
            adjoint, total, mean, mass, weight = carry
            share = (self.steps - 1 - behind) / self.steps
            x = jax.tree.map(
                lambda a, b: ((1 - share) * a + share * b).astype(a.dtype), start, run.x
            )
            t = self.steps - 1 - behind
            _, pull = jax.vjp(lambda x, h: run(x, run.rest, h, t)[0], x, run.h)
            adjoint, contribution = pull(adjoint)
            total = jax.tree.map(jnp.add, total, contribution)
            mass = mass + weight
            mean = vector.axpy(weight / mass, vector.sub(x, mean), mean)
            one = vector.scale(mass, _pull(run, mean, cotangent))
            carry = (adjoint, total, mean, mass, weight * self.decay)
            return carry, (vector.vdot(one, total), vector.vdot(one, one))

        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(run.h)))
        begin = (cotangent, vector.zeros_like(run.h), run.x, zero, jnp.ones_like(zero))
        _, (products, squares) = jax.lax.scan(back, begin, jnp.arange(self.steps))
        square = jnp.sum(squares)
        return jnp.where(square > 0, jnp.sum(products) / jnp.where(square > 0, square, 1), 1)


def _pull(run: Dynamics, x: PyTree, cotangent: PyTree) -> PyTree:
    """`B(x)ᵀ α`: what one step from `x` makes of the hyperparameters."""
    t = jnp.zeros((), jnp.int32)
    return jax.vjp(lambda h: run(x, run.rest, h, t)[0], run.h)[1](cotangent)[0]
