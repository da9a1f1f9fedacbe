"""What all inferences by sites share: a fixed point, and an evidence at it."""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, direct_info
from hypergrad.expected import require, require_count, require_number
from hypergrad.gaussian_process.problem import GPProblem, any_held
from hypergrad.gaussian_process.sites import Sites
from hypergrad.implicit.differentiation import ImplicitDifferentiation
from hypergrad.linear import vector
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.gmres import GMRES
from hypergrad.outcome import Outcome
from hypergrad.paths import require_effect, trace_paths
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator


class SiteState(eqx.Module):
    """`params`: the `Sites`; `iterations`: of the last `fit`."""

    params: Sites
    iterations: Int[Array, ""]


class SiteEstimator(RestrictedEstimator):
    """Hypergradients of a negative log evidence of a Gaussian process, at sites.

    `init` begins at the sites `params` (`GPProblem.sites`). `fit` takes `steps` steps
    `sites <- (1 − step) sites + step update(sites)`; those that are not finite are not taken.

    The hypergradient holds the sites fixed; where the evidence is stationary in them that is all of
    it, elsewhere `info.outcome` says "approximate": also where a site of a likelihood that is not
    log-concave is held at a positive precision. `through_sites=True` adds how the fixed point moves
    with the hyperparameters, by one linear solve, and `aux` is then the size of that part relative
    to the whole.

    `info.inner_residual` is the length of the next whole step relative to the sites it leads to.
    `info.error` is known with `through_sites`, and NaN without. A kernel matrix that is not
    positive semidefinite shows as `info.outcome` "not_finite".

    **Arguments:**

    - `steps`: of one `fit`.
    - `step`: their length, in `(0, 1]`.
    - `through_sites`: see above.
    - `linear_solver`: for that part. Default `GMRES()`.
    """

    state_type: ClassVar[type] = SiteState
    #: Whether the evidence does not change with the sites, to first order, where they are fitted.
    stationary: ClassVar[bool] = False

    steps: int = eqx.field(static=True, default=20)
    step: float = 0.1
    through_sites: bool = eqx.field(static=True, default=False)
    linear_solver: LinearSolver = GMRES()

    def __check_init__(self) -> None:
        name = type(self).__name__
        require_count(name, "steps", self.steps)
        # An array may be traced, one of several numbers is no length.
        if not isinstance(self.step, jax.Array) or self.step.ndim:
            require_number(name, "step", self.step)
            if not 0 < self.step <= 1:
                raise ValueError(
                    f"{name}: step: expected a number in (0, 1], received {self.step!r:.40}."
                )
        require(name, "linear_solver", self.linear_solver, LinearSolver, "GMRES()")

    @abstractmethod
    def update(self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree) -> Sites:
        """The map whose fixed point the sites are."""

    @abstractmethod
    def log_evidence(
        self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree
    ) -> Scalar:
        """The estimate of `log p(y)` at the sites."""

    def _init(self, given: RestrictedProblem) -> SiteState:
        if not isinstance(given.problem, GPProblem):
            kind = type(given.problem).__name__
            raise ValueError(f"problem: expected a GPProblem, received a {kind}.")
        if not isinstance(given.params, Sites):
            raise ValueError(
                "params: expected Sites, as of problem.sites(batch), received a "
                f"{type(given.params).__name__}."
            )
        return SiteState(given.params, jnp.zeros((), jnp.int32))

    def _fit(self, given: RestrictedProblem, state: SiteState) -> tuple[SiteState, FitInfo]:
        problem, sites, hparams, inner_batch = given.inner_arguments
        assert isinstance(problem, GPProblem)

        def body(_: Array, sites: Sites) -> Sites:
            target = self.update(problem, sites, hparams, inner_batch)
            moved = vector.axpy(self.step, vector.sub(target, sites), sites)
            return vector.where(vector.all_finite(moved), moved, sites)

        sites = jax.lax.fori_loop(0, self.steps, body, sites)
        taken = jnp.asarray(self.steps, jnp.int32)
        residual = self._residual(problem, sites, hparams, inner_batch)
        return SiteState(sites, taken), FitInfo(residual, taken)

    def _hypergradient(self, given: RestrictedProblem, state: SiteState) -> Hypergradient:
        gp, sites, hparams, inner_batch = given.inner_arguments
        assert isinstance(gp, GPProblem)

        def away(sites: Sites, hparams: PyTree, batch: PyTree) -> Sites:
            return vector.sub(sites, self.update(gp, sites, hparams, batch))

        def loss(sites: Sites, hparams: PyTree, batch: PyTree) -> Scalar:
            return -self.log_evidence(gp, sites, hparams, batch)

        bilevel = BilevelProblem(None, loss, away)
        given = RestrictedProblem(bilevel, sites, hparams, inner_batch, inner_batch)
        value, grad = jax.value_and_grad(lambda h: given.outer_loss(None, h))(given.h)
        residual = self._residual(gp, sites, hparams, inner_batch)
        aux = None
        if self.through_sites:
            response = ImplicitDifferentiation(None, self.linear_solver)
            whole = response.hypergradient(
                bilevel,
                response.init(bilevel, sites, hparams, inner_batch),
                hparams,
                inner_batch,
                inner_batch,
            )
            length = vector.norm(whole.grad)
            aux = vector.norm(vector.sub(whole.grad, grad)) / jnp.where(length > 0, length, 1)
            grad = whole.grad
            info = eqx.tree_at(
                lambda info: (info.inner_residual, info.inner_iterations),
                whole.info,
                (residual, state.iterations),
            )
        else:
            require_effect(trace_paths(*given.arguments), type(self).__name__)
            good = Outcome.approximate
            if self.stationary:
                good = Outcome.where(any_held(gp.likelihood, sites), good, Outcome.solved)
            info = direct_info(
                value,
                grad,
                inner_residual=residual,
                inner_iterations=state.iterations,
                outcome=good,
                error=jnp.full_like(residual, jnp.nan),
            )
        return Hypergradient(value, grad, state, info, aux)

    def _residual(self, problem: GPProblem, sites: Sites, hparams: PyTree, batch: PyTree) -> Scalar:
        target = self.update(problem, sites, hparams, batch)
        size = vector.norm(target)
        return vector.norm(vector.sub(target, sites)) / jnp.where(size > 0, size, 1)
