"""A network, a likelihood and a Gaussian prior: what an evidence needs to know."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad.expected import require_choice, require_function
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem

_LIKELIHOODS = ("categorical", "gaussian")


class BayesianModel(eqx.Module):
    """A network with a likelihood and a Gaussian prior; see `EvidenceProblem` for its parts."""

    predict: Callable
    likelihood: Literal["categorical", "gaussian"] = eqx.field(static=True)
    log_precision: Callable
    log_variance: Callable | None = None

    def __check_init__(self) -> None:
        require_function("EvidenceProblem", "predict", self.predict)
        require_choice("EvidenceProblem", "likelihood", self.likelihood, _LIKELIHOODS)
        require_function("EvidenceProblem", "log_precision", self.log_precision)
        if self.log_variance is not None:
            require_function("EvidenceProblem", "log_variance", self.log_variance)
        if (self.log_variance is None) == (self.likelihood == "gaussian"):
            raise ValueError(
                "EvidenceProblem: 'log_variance': expected a function for the likelihood "
                f"'gaussian' and None for any other, received {self.log_variance!r} for "
                f"{self.likelihood!r}."
            )

    def precisions(self, params: PyTree, hparams: PyTree) -> PyTree:
        """The prior's precision of every weight, like the differentiable part of `params`.

        **Raises:** `ValueError` if `log_precision` does not fit the weights.
        """
        weights = eqx.filter(params, eqx.is_inexact_array)
        given = self.log_precision(hparams, params)

        def spread(value: Array, below: PyTree) -> PyTree:
            return jax.tree.map(lambda w: jnp.broadcast_to(jnp.exp(value), w.shape), below)

        try:
            return jax.tree.map(spread, given, weights)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "EvidenceProblem: 'log_precision': expected a pytree like params, or one that ends "
                f"earlier, with leaves that broadcast to the weights; received leaves of shapes "
                f"{jax.tree.map(jnp.shape, given)} for weights of shapes "
                f"{jax.tree.map(jnp.shape, weights)}."
            ) from error

    def outputs(self, params: PyTree, hparams: PyTree, x: PyTree) -> Float[Array, " outputs"]:
        """The outputs for one example, flat."""
        return jnp.ravel(self.predict(params, hparams, x))

    def log_likelihood(self, outputs: Array, hparams: PyTree, y: Array) -> Scalar:
        """`log p(y | outputs)` of one example."""
        if self.likelihood == "categorical":
            return jax.nn.log_softmax(outputs)[y]
        variance = self.log_variance(hparams)  # type: ignore[misc]
        away = jnp.sum((jnp.ravel(y) - outputs) ** 2)
        constant = outputs.size * (jnp.log(2 * jnp.pi) + variance)
        return -0.5 * (away * jnp.exp(-variance) + constant)

    def root(self, outputs: Array, hparams: PyTree) -> Float[Array, "outputs outputs"]:
        """`S` with `S Sᵀ = −∂² log p / ∂outputs²`.

        Of a softmax the curvature is `diag(p) − p pᵀ = R (I − r rᵀ) R` with `r = √p`, `R = diag(r)`
        and a projector in the middle, which is its own root: no eigenvalues are needed.
        """
        eye = jnp.eye(outputs.size, dtype=outputs.dtype)
        if self.likelihood == "gaussian":
            return jnp.exp(-0.5 * self.log_variance(hparams)) * eye  # type: ignore[misc]
        root = jnp.exp(0.5 * jax.nn.log_softmax(outputs))
        return root[:, None] * (eye - jnp.outer(root, root))

    def negative_log_likelihood(self, params: PyTree, hparams: PyTree, batch: PyTree) -> Scalar:
        """The sum over the batch."""
        x, y = batch
        each = jax.vmap(
            lambda x, y: self.log_likelihood(self.outputs(params, hparams, x), hparams, y)
        )
        return -jnp.sum(each(x, y))

    def prior_energy(self, params: PyTree, hparams: PyTree) -> Scalar:
        """`½ Σ δ w²`; the prior's normaliser is part of the log determinant."""
        weights = eqx.filter(params, eqx.is_inexact_array)
        weighted = jax.tree.map(jnp.multiply, self.precisions(params, hparams), weights)
        return 0.5 * vector.vdot(weighted, weights)

    def negative_log_posterior(self, params: PyTree, hparams: PyTree, batch: PyTree) -> Scalar:
        """What training minimises: a sum over the batch, and the prior once."""
        loss = self.negative_log_likelihood(params, hparams, batch)
        return loss + self.prior_energy(params, hparams)

    def mean_negative_log_likelihood(
        self, params: PyTree, hparams: PyTree, batch: PyTree
    ) -> Scalar:
        """What held-out data say; NaN, not known, without any."""
        if batch is None:
            return jnp.asarray(jnp.nan)
        return self.negative_log_likelihood(params, hparams, batch) / jnp.shape(batch[1])[0]


class EvidenceProblem(BilevelProblem):
    """Train a network to its most probable weights, and judge hyperparameters by the evidence.

    As a `BilevelProblem`, `inner` is the negative log posterior, a *sum* over the examples of the
    batch and not a mean: `−Σ log p(y | predict) + ½ Σ δ w²`. `outer` is the mean negative log
    likelihood of its batch, so that held-out data can watch a run, and NaN (not known) without a
    batch: `LaplaceEvidence` needs none and does not ask for it.

    A batch is a pair `(x, y)` of arrays, or pytrees of `x`, with a leading axis of examples.

    **Arguments:**

    - `predict`: `predict(params, hparams, x) -> outputs`, of *one* example: logits of shape
      `(classes,)`, or means of shape `(outputs,)` or `()`.
    - `likelihood`: `"categorical"` (`y`: integer classes) or `"gaussian"` (`y`: like the outputs).
    - `log_precision`: `log_precision(hparams, params) -> pytree`: the log of the precision `δ` of
      the prior `N(0, 1/δ)` of the weights. A scalar, or a pytree like `params` or one that ends
      earlier, whose leaves broadcast to the weights below: one for a layer, or for every weight.
    - `log_variance`: `log_variance(hparams) -> scalar`, log variance of the noise; needed for
      `"gaussian"`, refused for `"categorical"`.
    """

    model: BayesianModel = None  # type: ignore[assignment]

    def __init__(
        self,
        predict: Callable,
        likelihood: Literal["categorical", "gaussian"],
        log_precision: Callable,
        log_variance: Callable | None = None,
    ) -> None:
        self.model = BayesianModel(predict, likelihood, log_precision, log_variance)
        self.inner = self.model.negative_log_posterior
        self.outer = self.model.mean_negative_log_likelihood
        self.optimality = None
        self.has_aux = False
        self.stochastic = False
