"""Problems whose outer loss is the inner loss, up to its sign: their value function.

At the inner solution the inner loss does not change to first order with the params, so that the
total derivative of such an outer loss is its partial derivative in the hyperparameters alone (the
envelope theorem; Danskin 1967 where the inner solution is constrained). No linear system is solved.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.inner import as_inner_solver
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_scale
from hypergrad.restricted import RestrictedProblem


class ValueProblem(BilevelProblem):
    """A bilevel problem whose outer loss is, up to its sign, the inner loss.

    `MinimaxProblem` and `ConstrainedProblem` are the two. What they have in common: `Envelope`
    gives their hypergradient, and both players may move at once (`hypergrad.outer.Extragradient`).

    `advice` is what the doctor says of such a problem: what to run.
    """

    advice: ClassVar[str] = ""

    def slopes(
        self,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        key: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        """`(∂inner/∂params, ∂outer/∂hparams)`: what each player descends, no total derivative."""
        here = RestrictedProblem(self, params, hparams, inner_batch, outer_batch, key)
        return jax.grad(here.inner_loss)(here.w), jax.grad(lambda h: here.outer_loss(h=h))(here.h)

    def project_params(self, params: PyTree) -> PyTree:
        """The nearest params that the problem allows; all, by default."""
        return params

    def project_hparams(self, hparams: PyTree) -> PyTree:
        """The nearest hyperparameters that the problem allows; all, by default."""
        return hparams


class EnvelopeState(eqx.Module):
    """What `Envelope` carries: the inner point, its solver's state, and the residual there.

    `scale` is what residuals are relative to; see `HypergradientInfo.inner_residual`.
    """

    params: PyTree
    inner_state: PyTree
    iterations: Int[Array, ""]
    scale: Scalar


class Envelope(Estimator):
    """The hypergradient of a `ValueProblem`: a partial derivative at the inner solution.

    First order in the accuracy of the inner solution, as every hypergradient; the value is of
    second order. `info.error` is not known (NaN): it would take the linear solve that is saved.
    `info.linear_residual` is NaN, `info.iterations` 0.

    **Arguments:**

    - `solver`: the inner solver, whatever `as_inner_solver` takes. `None` takes `params` as solved.

    **Raises:** `ValueError` for a problem that is no `ValueProblem`: elsewhere the partial
    derivative is not the hypergradient.
    """

    state_type: ClassVar[type] = EnvelopeState
    solver: Any = None

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> EnvelopeState:
        """See `Estimator.init`."""
        if not isinstance(problem, ValueProblem):
            raise ValueError(
                "Envelope: problem: expected a MinimaxProblem or a ConstrainedProblem, received a "
                f"{type(problem).__name__}; take ImplicitDifferentiation."
            )
        here = RestrictedProblem(problem, params, hparams, inner_batch, key=key)
        _, scale = residual_scale(here.residual, here.w)
        solver = None if self.solver is None else as_inner_solver(self.solver)
        inner_state = None if solver is None else solver.init(problem, params)
        return EnvelopeState(params, inner_state, jnp.zeros((), jnp.int32), scale)

    def fit(
        self,
        problem: BilevelProblem,
        state: EnvelopeState,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[EnvelopeState, FitInfo]:
        """See `Estimator.fit`."""
        if self.solver is None:
            nothing = jnp.zeros((), jnp.int32)
            return state, FitInfo(jnp.full_like(state.scale, jnp.nan), nothing)
        solution = as_inner_solver(self.solver).run(
            problem, state.params, hparams, inner_batch, state=state.inner_state, key=key
        )
        new = EnvelopeState(solution.params, solution.state, solution.iterations, state.scale)
        return new, FitInfo(solution.residual / state.scale, solution.iterations)

    def hypergradient(
        self,
        problem: BilevelProblem,
        state: EnvelopeState,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """See `Estimator.hypergradient`; costs one gradient of each loss."""
        here = RestrictedProblem(problem, state.params, hparams, inner_batch, outer_batch, key)
        (value, aux), grad = jax.value_and_grad(
            lambda h: here.outer_loss_and_aux(h=h), has_aux=True
        )(here.h)
        residual = vector.norm(here.residual()) / state.scale
        good = jnp.isfinite(value) & vector.all_finite(grad)
        unknown = jnp.full_like(residual, jnp.nan)
        info = HypergradientInfo(
            inner_residual=residual,
            inner_iterations=state.iterations,
            linear_residual=unknown,
            iterations=jnp.zeros((), jnp.int32),
            outcome=Outcome.where(good, Outcome.solved, Outcome.not_finite),
            error=jnp.where(good, unknown, jnp.inf),
        )
        return Hypergradient(value, grad, state, info, aux)
