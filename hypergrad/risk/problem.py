"""Bilevel problems whose outer loss estimates the risk of the inner solution.

The outer losses hold a derivative of the inner solution in the data. It is taken through
`implicit_solver`, and so is its own derivative in the hyperparameters: hypergradients of all
estimators are those of the estimate of the risk (SUGAR: Deledalle, Vaiter, Fadili & Peyré, SIAM J.
Imaging Sciences 7, 2014).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require, require_finite, require_function
from hypergrad.implicit.differentiable import implicit_solver
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.problem import BilevelProblem
from hypergrad.risk.divergence import divergence, require_probes


class _RiskProblem(BilevelProblem):
    """What both share; see `SURE`."""

    @classmethod
    def _outer(
        cls,
        score: Callable[[Scalar, Scalar, int], Scalar],
        inner: Callable,
        predict: Callable,
        solver: Any,
        linear_solver: LinearSolver,
        probes: int | None,
        key: Array | None,
    ) -> Callable:
        require_function(cls.__name__, "inner", inner)
        require_function(cls.__name__, "predict", predict)
        require(cls.__name__, "linear_solver", linear_solver, LinearSolver, "CG()")
        require_probes(cls.__name__, probes, key)
        training = BilevelProblem(inner, lambda *_: jnp.zeros(()))
        solve = implicit_solver(training, solver, linear_solver)

        def outer(params: PyTree, hparams: PyTree, y: Array) -> Scalar:
            fitted = predict(params, hparams)
            if jnp.shape(fitted) != jnp.shape(y):
                raise ValueError(
                    f"{cls.__name__}: 'predict': expected fitted values of the shape of the data, "
                    f"{jnp.shape(y)}, received {jnp.shape(fitted)}."
                )
            start = jax.lax.stop_gradient(params)
            freedom = divergence(
                lambda y: predict(solve(start, hparams, y), hparams), y, probes, key
            )
            return score(jnp.sum((y - fitted) ** 2), freedom, y.size)

        return outer


class SURE(_RiskProblem):
    """Stein's unbiased estimate of `E ‖fitted − truth‖²`, for Gaussian noise of known size.

    `−n σ² + ‖y − fitted‖² + 2 σ² div fitted` (Stein 1981). Both batches are the data `y` alone, an
    array: whatever else a loss needs (a design, an operator) it holds itself.

    **Arguments:**

    - `inner`: `inner(params, hparams, y) -> loss`, twice differentiable.
    - `predict`: `predict(params, hparams) -> fitted values`, of the shape of `y`.
    - `sigma`: standard deviation of the noise.
    - `solver`: for the inner problem, as `implicit_solver` takes it, to a small residual.
    - `linear_solver`: for its derivatives. Default `CG()`.
    - `probes`, `key`: of the divergence; see `hypergrad.risk.divergence`. The probes of a problem
      are the same in every evaluation: the outer loss is a function.
    """

    def __init__(
        self,
        inner: Callable,
        predict: Callable,
        sigma: float,
        solver: Any,
        linear_solver: LinearSolver = CG(),  # noqa: B008 (immutable)
        *,
        probes: int | None = None,
        key: Array | None = None,
    ) -> None:
        # An array may be traced, one of several numbers is no deviation.
        if not isinstance(sigma, jax.Array) or sigma.ndim:
            require_finite("SURE", "sigma", sigma)
        if not isinstance(sigma, jax.core.Tracer) and not sigma > 0:
            raise ValueError(f"SURE: sigma: expected a number > 0, received {sigma!r:.40}.")

        def score(squares: Scalar, freedom: Scalar, n: int) -> Scalar:
            return squares - n * sigma**2 + 2 * sigma**2 * freedom

        self.inner = inner
        self.outer = self._outer(score, inner, predict, solver, linear_solver, probes, key)
        self.optimality = None
        self.has_aux = False
        self.stochastic = False


class GCV(_RiskProblem):
    """Generalised cross-validation, `n ‖y − fitted‖² / (n − div fitted)²`; the noise is not known.

    Golub, Heath and Wahba (1979). For the arguments see `SURE`.
    """

    def __init__(
        self,
        inner: Callable,
        predict: Callable,
        solver: Any,
        linear_solver: LinearSolver = CG(),  # noqa: B008 (immutable)
        *,
        probes: int | None = None,
        key: Array | None = None,
    ) -> None:
        def score(squares: Scalar, freedom: Scalar, n: int) -> Scalar:
            return n * squares / (n - freedom) ** 2

        self.inner = inner
        self.outer = self._outer(score, inner, predict, solver, linear_solver, probes, key)
        self.optimality = None
        self.has_aux = False
        self.stochastic = False
