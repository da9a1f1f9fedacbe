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

from hypergrad.estimator import FitInfo, Hypergradient, direct_info
from hypergrad.inner import as_inner_solver
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_scale
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator


class ValueProblem(BilevelProblem):
    """A bilevel problem whose outer loss is, up to its sign, the inner loss.

    `MinimaxProblem` and `ConstrainedProblem` are the two. What they have in common: `Envelope`
    gives their hypergradient, and both players may move at once (`hypergrad.outer.Extragradient`).

    `advice` is what `recommend` says of such a problem: what to run.
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


class Envelope(RestrictedEstimator):
    """The hypergradient of a `ValueProblem`: a partial derivative at the inner solution.

    It costs one gradient of each loss.

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

    def _init(self, given: RestrictedProblem) -> EnvelopeState:
        if not isinstance(given.problem, ValueProblem):
            raise ValueError(
                "Envelope: problem: expected a MinimaxProblem or a ConstrainedProblem, received a "
                f"{type(given.problem).__name__}; take ImplicitDifferentiation."
            )
        _, scale = residual_scale(given.residual, given.w)
        solver = None if self.solver is None else as_inner_solver(self.solver)
        inner_state = None if solver is None else solver.init(given.problem, given.params)
        return EnvelopeState(given.params, inner_state, jnp.zeros((), jnp.int32), scale)

    def _fit(self, given: RestrictedProblem, state: EnvelopeState) -> tuple[EnvelopeState, FitInfo]:
        if self.solver is None:
            nothing = jnp.zeros((), jnp.int32)
            return state, FitInfo(jnp.full_like(state.scale, jnp.nan), nothing)
        solution = as_inner_solver(self.solver).run(
            *given.inner_arguments, state=state.inner_state, key=given.key
        )
        new = EnvelopeState(solution.params, solution.state, solution.iterations, state.scale)
        return new, FitInfo(solution.residual / state.scale, solution.iterations)

    def _hypergradient(self, given: RestrictedProblem, state: EnvelopeState) -> Hypergradient:
        (value, aux), grad = jax.value_and_grad(
            lambda h: given.outer_loss_and_aux(h=h), has_aux=True
        )(given.h)
        residual = vector.norm(given.residual()) / state.scale
        info = direct_info(
            value,
            grad,
            inner_residual=residual,
            inner_iterations=state.iterations,
            error=jnp.full_like(residual, jnp.nan),
        )
        return Hypergradient(value, grad, state, info, aux)
