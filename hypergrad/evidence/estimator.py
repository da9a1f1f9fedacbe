"""The hypergradient of a Laplace approximation to the evidence.

    log p(D | λ) ≈ log p(D | w*) − ½ [w*ᵀ P₀ w* + log det(I + A Aᵀ)]

with `w*` the most probable weights, `P₀` the precision of the prior and `A` the scaled Jacobian
(MacKay 1992; Khan et al. 2019; Immer et al., ICML 2021 and 2023).
"""

from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, direct_info
from hypergrad.evidence.bounds import Bound, Exact
from hypergrad.evidence.linearised import Linearised
from hypergrad.evidence.problem import EvidenceProblem
from hypergrad.implicit.differentiation import ImplicitDifferentiation, ImplicitState
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.outcome import Outcome, worse
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator, begun, fitted


class LaplaceEvidence(RestrictedEstimator):
    """Hypergradients of the negative log evidence per example; no validation data.

    The problem is an `EvidenceProblem`, the inner batch all of the training data; the outer batch
    is ignored and may be `None`. The key of `hypergradient` is for random draws.

    The first terms of the evidence do not change with the weights at their optimum. Its log
    determinant does, and the default leaves that out, as published: `info.outcome` is then
    "approximate". `indirect=True` adds it, by one linear solve, and `info` tells of that solve.

    `info.inner_residual`: how stationary the weights are. `info.error`: of a `bound` with random
    draws the standard error over them, relative; otherwise of the indirect part, or not known.
    `info.outcome`: "not_finite" where a number is not (a precision without bound, say).

    **Arguments:**

    - `solver`: trains the weights in `fit`: an `InnerSolver`, an optax optimizer, a function.
      `None` takes the weights given as trained.
    - `bound`: the log determinant. Default `Exact()`.
    - `indirect`: also through the weights.
    - `linear_solver`: for the indirect part. Default `CG()`.
    """

    state_type: ClassVar[type] = ImplicitState
    response: ImplicitDifferentiation
    bound: Bound
    indirect: bool = eqx.field(static=True)

    def __init__(
        self,
        solver: Any = None,
        bound: Bound = Exact(),  # noqa: B008 (immutable)
        *,
        indirect: bool = False,
        linear_solver: LinearSolver = CG(),  # noqa: B008 (immutable)
    ) -> None:
        if not isinstance(bound, Bound):
            raise ValueError(
                "LaplaceEvidence: 'bound': expected a Bound such as Exact() or Subsets(100), "
                f"received {bound!r}."
            )
        self.response = ImplicitDifferentiation(solver, linear_solver)
        self.bound = bound
        self.indirect = indirect

    def _init(self, given: RestrictedProblem) -> ImplicitState:
        if not isinstance(given.problem, EvidenceProblem):
            raise ValueError(
                "problem: expected an EvidenceProblem, which has a likelihood, received a "
                f"{type(given.problem).__name__}."
            )
        if not (isinstance(given.inner_batch, tuple | list) and len(given.inner_batch) == 2):
            raise ValueError(
                "inner_batch: expected a pair (x, y) of all the training data, received a "
                f"{type(given.inner_batch).__name__}."
            )
        return begun(self.response, given)

    def _fit(self, given: RestrictedProblem, state: ImplicitState) -> tuple[ImplicitState, FitInfo]:
        return fitted(self.response, given, state)

    def _hypergradient(self, given: RestrictedProblem, state: ImplicitState) -> Hypergradient:
        problem, params, hparams, inner_batch = given.inner_arguments
        assert isinstance(problem, EvidenceProblem)
        whole = Linearised(problem.model, params, hparams, inner_batch)
        draws = self.bound.draws(whole.examples, whole.outputs, given.key)

        def loss(params: PyTree, hparams: PyTree, draws: PyTree) -> Scalar:
            network = Linearised(problem.model, params, hparams, inner_batch)
            log_dets = jax.lax.map(lambda draw: self.bound.log_det(network, draw), draws)
            inner = problem.inner_loss(params, hparams, inner_batch)[0]
            return (inner + 0.5 * jnp.mean(log_dets)) / network.examples

        judged = BilevelProblem(problem.inner, loss)
        if self.indirect:
            found = self.response.hypergradient(judged, state, hparams, inner_batch, draws)
            _, each = self._terms(judged, whole, draws)
            if not self.bound.random:
                return found
            spread = self._spread(each, found.grad)
            outcome = Outcome.where(jnp.isnan(spread), Outcome.one_draw, Outcome.solved)
            judged_with = (found.info.error_with(spread), worse(found.info.outcome, outcome))
            return eqx.tree_at(lambda f: (f.info.error, f.info.outcome), found, judged_with)
        paths = trace_paths(judged, params, hparams, inner_batch, draws)
        require_effect(paths, type(self).__name__)
        inner, first = jax.value_and_grad(lambda h: given.inner_loss(None, h) / whole.examples)(
            given.h
        )
        terms, each = self._terms(judged, whole, draws)
        value = inner + jnp.mean(terms)
        grad = jax.tree.map(lambda a, b: (a + jnp.mean(b, axis=0)).astype(a.dtype), first, each)
        residual = vector.norm(given.residual()) / state.scale
        info = direct_info(
            value,
            grad,
            inner_residual=residual,
            inner_iterations=state.inner_iterations,
            outcome=Outcome.approximate,
            error=self._spread(each, grad).astype(residual.dtype),
        )
        return Hypergradient(value, grad, state, info)

    def _terms(
        self, problem: BilevelProblem, network: Linearised, draws: PyTree
    ) -> tuple[Array, PyTree]:
        """`½ log det / N` of each draw, and its derivative; one draw at a time."""
        given = RestrictedProblem(problem, network.params, network.hparams)

        def term(h: PyTree, draw: PyTree) -> Scalar:
            here = replace(network, hparams=given.hparams_at(h))
            return 0.5 * self.bound.log_det(here, draw) / network.examples

        return jax.lax.map(lambda draw: jax.value_and_grad(term)(given.h, draw), draws)

    def _spread(self, each: PyTree, grad: PyTree) -> Scalar:
        """Standard error of the gradient over random draws, relative; NaN if not known."""
        count = jax.tree.leaves(each)[0].shape[0]
        if not self.bound.random or count < 2:
            return jnp.asarray(jnp.nan)
        variance = sum(jnp.sum(jnp.var(leaf, axis=0, ddof=1)) for leaf in jax.tree.leaves(each))
        length = vector.norm(grad)
        error = jnp.sqrt(variance / count) / jnp.where(length > 0, length, 1)
        return jnp.where(length > 0, error, jnp.inf)
