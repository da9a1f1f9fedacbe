"""Implicit diffusion: the derivative of an expectation under the distribution that a sampler has.

The inner "solution" is the distribution `π(θ) ∝ exp(−V(x, θ))`, held as a cloud of particles, and
the outer loss an expectation. Its derivative needs no derivative of the sampler:

    d/dθ E_π[R(x, θ)] = E_π[∂R/∂θ] − Cov_π(R(x, θ), ∂V(x, θ)/∂θ)

Marion, Korba, Bartlett, Blondel, De Bortoli, Doucet, Llinares-López, Paquette and Berthet,
"Implicit Diffusion: Efficient Optimization through Stochastic Sampling" (AISTATS 2025).
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, direct_info
from hypergrad.expected import require, require_count
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator
from hypergrad.sampling.langevin import Langevin
from hypergrad.sampling.problem import SamplingProblem, mean_statistic


class DiffusionState(eqx.Module):
    """The cloud: `params`, a pytree with a leading axis of particles; steps so far; all finite."""

    params: PyTree
    steps: Int[Array, ""]
    finite: Bool[Array, ""]


class ImplicitDiffusion(RestrictedEstimator):
    """Hypergradients of expectations under `exp(−inner)`, sampled by Langevin dynamics.

    The problem is a `SamplingProblem`. A few steps at a time are enough, because the cloud follows
    the hyperparameters: `Alternating(ImplicitDiffusion(...), optimizer)` is the single loop of the
    paper. A hypergradient costs one gradient of each loss for every particle.

    Without a key the noise of `fit` depends on the number of steps taken: a run is reproducible,
    and no noise is used twice. The residual is known to `hypergradient` only.

    `info.inner_residual` is `|E[(x − E x)·∂V/∂x] / d − 1|`, zero for a cloud distributed as
    `exp(−V)` (the virial theorem), up to its own noise of about `√(2 / (n d))`. `info.error` is the
    standard error of the gradient over blocks of particles, relative; it knows nothing of modes
    that no particle has reached, nor of the bias of the step, which `inner_residual` shows (the
    gradient's is up to twice that).

    **Arguments:**

    - `dynamics`: how particles move.
    - `steps`: Langevin steps of one `fit`. Default 1.
    - `blocks`: blocks of particles for the standard error, at least 2. Default 16.
    """

    state_type: ClassVar[type] = DiffusionState

    dynamics: Langevin
    steps: int = eqx.field(static=True, default=1)
    blocks: int = eqx.field(static=True, default=16)

    def __check_init__(self) -> None:
        require("ImplicitDiffusion", "dynamics", self.dynamics, Langevin, "Langevin(0.1)")
        require_count("ImplicitDiffusion", "steps", self.steps)
        require_count("ImplicitDiffusion", "blocks", self.blocks, 2)

    def _init(self, given: RestrictedProblem) -> DiffusionState:
        if not isinstance(given.problem, SamplingProblem):
            raise ValueError(
                f"problem: expected a SamplingProblem, received a {type(given.problem).__name__}."
            )
        leaves = jax.tree.leaves(given.params)
        sizes = {leaf.shape[0] if jnp.ndim(leaf) else 0 for leaf in leaves}
        if len(sizes) != 1 or min(sizes) < 2 * self.blocks:
            raise ValueError(
                "params: expected a cloud, every leaf with the same leading axis of at least "
                f"{2 * self.blocks} particles (2 'blocks'), received leading axes {sorted(sizes)}."
            )
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            raise ValueError("params: expected real floating-point particles.")
        return DiffusionState(given.params, jnp.zeros((), jnp.int32), jnp.asarray(True))

    def _fit(
        self, given: RestrictedProblem, state: DiffusionState
    ) -> tuple[DiffusionState, FitInfo]:
        key, problem = given.key, given.problem
        assert isinstance(problem, SamplingProblem)
        if key is None:
            key = jax.random.fold_in(jax.random.key(0), state.steps)

        def body(carry: tuple[PyTree, Array], each: Array) -> tuple[tuple[PyTree, Array], None]:
            particles, finite = carry
            moved, good = self.dynamics.move(
                problem, particles, given.hparams, given.inner_batch, each
            )
            return (moved, finite & good), None

        keys = jax.random.split(key, self.steps)
        (particles, finite), _ = jax.lax.scan(body, (state.params, jnp.asarray(True)), keys)
        taken = jnp.asarray(self.steps, jnp.int32)
        return DiffusionState(particles, state.steps + taken, finite), FitInfo(
            jnp.asarray(jnp.nan), taken
        )

    def _hypergradient(self, given: RestrictedProblem, state: DiffusionState) -> Hypergradient:
        problem, cloud, hparams, inner_batch = given.inner_arguments
        key = given.key
        assert isinstance(problem, SamplingProblem)
        count = jax.tree.leaves(cloud)[0].shape[0]
        size = count // self.blocks
        blocks = jax.tree.map(
            lambda leaf: leaf[: size * self.blocks].reshape(self.blocks, size, *leaf.shape[1:]),
            cloud,
        )

        losses, value, direct = self._losses(problem, given)
        centred = losses - jnp.mean(losses)

        def covariance(particles: PyTree, weights: Array) -> PyTree:
            """Mean over a block of weight times `∂V/∂θ`: one reverse pass."""

            def weighted(lam: PyTree) -> Scalar:
                full = given.hparams_at(lam)
                return jnp.mean(weights * problem.potentials(particles, full, inner_batch, key))

            return jax.grad(weighted)(given.h)

        whole = covariance(cloud, centred)
        # Within a block the weights are centred by the mean of all: the blocks' mean is the
        # estimate.
        parts = jax.vmap(covariance)(
            blocks, centred[: size * self.blocks].reshape(self.blocks, size)
        )
        grad = jax.tree.map(lambda d, c: (d - c).astype(d.dtype), direct, whole)
        spread = jnp.sqrt(
            sum(jnp.sum(jnp.var(leaf, axis=0, ddof=1)) for leaf in jax.tree.leaves(parts))
            / self.blocks
        )
        length = vector.norm(grad)
        error = jnp.where(length > 0, spread / jnp.where(length > 0, length, 1), jnp.inf)
        residual = self._virial(problem, cloud, hparams, inner_batch, key)
        info = direct_info(
            value,
            grad,
            inner_residual=residual,
            inner_iterations=state.steps,
            outcome=Outcome.where(state.finite, Outcome.solved, Outcome.not_finite),
            error=error.astype(residual.dtype),
        )
        return Hypergradient(value, grad, state, info)

    @staticmethod
    def _losses(problem: SamplingProblem, given: RestrictedProblem) -> tuple[Array, Scalar, PyTree]:
        """The loss of every particle, what is minimised, and its direct derivative.

        With a statistic the loss of a particle is linear in its statistic, by the derivative at the
        mean (the first variation).
        """
        value, direct = jax.value_and_grad(lambda h: given.outer_loss(None, h))(given.h)
        cloud, full = given.params, given.hparams
        batch, extra = given.outer_batch, given.extra
        if problem.statistic is None:
            losses = jax.vmap(lambda x: problem.loss(x, full, batch, *extra))(cloud)
            return losses, value, direct
        statistic = problem.statistic
        centre = mean_statistic(statistic, cloud, batch)
        slope = jax.grad(problem.loss)(centre, full, batch, *extra)
        losses = jax.vmap(lambda x: vector.vdot(slope, statistic(x, batch)))(cloud)
        return losses, value, direct

    @staticmethod
    def _virial(
        problem: SamplingProblem, cloud: PyTree, hparams: PyTree, batch: PyTree, key: Array | None
    ) -> Scalar:
        slope = jax.grad(lambda x: jnp.sum(problem.potentials(x, hparams, batch, key)))(cloud)
        leaves = zip(jax.tree.leaves(cloud), jax.tree.leaves(slope), strict=True)
        total = sum(jnp.sum((x - jnp.mean(x, axis=0)) * g) for x, g in leaves)
        return jnp.abs(total / sum(leaf.size for leaf in jax.tree.leaves(cloud)) - 1)
