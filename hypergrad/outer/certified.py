"""Hypergradients and outer losses computed inexactly, with what is known of their errors."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.linear import vector
from hypergrad.outer.batches import Batches
from hypergrad.outer.inexact import adjoint_of, corrected_loss, with_tolerances
from hypergrad.outer.single_loop import outer_terms
from hypergrad.outer.smoothness import Smoothness
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem

# Relative error of the adjoint with which outer losses are corrected: it belongs to other
# hyperparameters, as far away as one step. So no solve for it is to be rougher.
ADJOINT_ERROR = 0.1
# An estimated error serves for so many more hypergradients.
CARRIED = 4


class Accuracy(eqx.Module):
    """How exactly to solve.

    - `inner`: bound of `‖∂f/∂w‖`, relative to the scale at the start.
    - `linear`: bound of the relative residual of the linear system.
    """

    inner: Scalar
    linear: Scalar

    def exhausted(self, descends: Array) -> Array:
        """Whether the tolerances in question are beyond rounding error.

        **Arguments:**

        - `descends`: the linear one is not in question, only the losses are too rough.
        """
        eps = jnp.finfo(self.inner.dtype).eps
        return (self.inner < eps) & (descends | (self.linear < eps))

    def scaled(self, inner: Scalar | float, linear: Scalar | float) -> "Accuracy":
        """Both tolerances times a factor, within what means anything."""
        dtype = self.inner.dtype
        least = jnp.finfo(dtype).eps / 4
        return Accuracy(
            jnp.clip(self.inner * inner, least, 1.0).astype(dtype),
            jnp.clip(self.linear * linear, least, ADJOINT_ERROR).astype(dtype),
        )


class Judgement(eqx.Module):
    """The last estimate of a hypergradient's error, carried along.

    An estimate costs more than the hypergradient.

    - `relative_error`: estimated then.
    - `accuracy`: of the solves then.
    - `age`: hypergradients computed since.
    """

    relative_error: Scalar
    accuracy: Accuracy
    age: Int[Array, ""]

    @classmethod
    def none(cls, accuracy: Accuracy) -> "Judgement":
        """Before the first estimate."""
        nan = jnp.full((), jnp.nan, accuracy.inner.dtype)
        return cls(nan, accuracy, jnp.zeros((), jnp.int32))

    def foretold(self, accuracy: Accuracy) -> Scalar:
        """The relative error at another accuracy: errors are proportional to residuals."""
        ratio = jnp.maximum(
            accuracy.inner / self.accuracy.inner, accuracy.linear / self.accuracy.linear
        )
        return self.relative_error * jnp.maximum(ratio, 1)

    def serves(self, accuracy: Accuracy, allowed: float | Array) -> Array:
        """Whether it is young and foretells no more than the relative error that is allowed."""
        return (self.age < CARRIED) & (self.foretold(accuracy) <= allowed)


class CertifiedLoss(eqx.Module):
    """An outer loss found by an inner solve.

    - `estimator_state`: the inner solution, and where the next solve starts.
    - `value`: the outer loss there.
    - `lower`, `upper`: between them lies the outer loss at the best response.
    - `inner_residual`: `‖∂f/∂w‖`, relative to the scale at the start.
    - `calls`, `iterations`: gradient-like evaluations and inner iterations spent.
    """

    estimator_state: Any
    value: Scalar
    lower: Scalar
    upper: Scalar
    inner_residual: Scalar
    calls: Int[Array, ""]
    iterations: Int[Array, ""]


class CertifiedPoint(CertifiedLoss):
    """The same with a hypergradient.

    - `gradient`: the hypergradient `z`, and `adjoint` the `q` in it.
    - `error`: bound of `‖z − dF/dλ‖`, and `relative_error` of its share of `‖z‖`.
    - `linear_residual`: of the adjoint system, relative.
    - `judgement`: the estimate that `error` comes from.
    """

    gradient: PyTree
    adjoint: PyTree
    error: Scalar
    relative_error: Scalar
    linear_residual: Scalar
    judgement: Judgement

    @classmethod
    def unknown(
        cls, estimator_state: Any, gradient: PyTree, judgement: Judgement
    ) -> "CertifiedPoint":
        """Before anything is computed."""
        nan = jnp.full((), jnp.nan, estimator_state.scale.dtype)
        zero = jnp.zeros((), jnp.int32)
        adjoint = vector.zeros_like(estimator_state.adjoint)
        return cls(
            estimator_state, *(nan,) * 4, zero, zero, gradient, adjoint, *(nan,) * 3, judgement
        )

    def judged_anew(self, loss: CertifiedLoss) -> "CertifiedPoint":
        """The same hypergradient, with the outer loss of a better solve at the same place."""
        names = CertifiedLoss.__dataclass_fields__
        return dataclasses.replace(self, **{name: getattr(loss, name) for name in names})


class Certifier(eqx.Module):
    """Computes outer losses and hypergradients as exactly as asked for, with their bounds.

    **Arguments:**

    - `estimator`: its tolerances are replaced.
    - `smoothness`: the problem's constants, a function `(params, hparams) -> Smoothness`, or `None`
      for the estimator's own estimate and corrected losses.
    - `problem`, `batches`, `key`: what is evaluated.
    - `scale`: what inner residuals are relative to.
    """

    estimator: ImplicitDifferentiation
    smoothness: Smoothness | Callable[[PyTree, PyTree], Smoothness] | None
    problem: BilevelProblem
    batches: Batches
    key: Array | None
    scale: Scalar

    def loss(
        self, estimator_state: Any, hparams: PyTree, accuracy: Accuracy, adjoint: PyTree
    ) -> CertifiedLoss:
        """The outer loss at `hparams`, with the `adjoint` of hyperparameters nearby."""
        response, info, here, value, cotangent = self._solve(estimator_state, hparams, accuracy)
        return CertifiedLoss(
            response,
            value,
            *self._bounds(here, value, info.residual * self.scale, cotangent, adjoint),
            inner_residual=info.residual.astype(self.scale.dtype),
            calls=info.iterations + 1 + self._corrections,
            iterations=info.iterations,
        )

    def hypergradient(
        self,
        estimator_state: Any,
        hparams: PyTree,
        accuracy: Accuracy,
        judgement: Judgement,
        anew: Array,
    ) -> CertifiedPoint:
        """The hypergradient at `hparams`.

        **Arguments:**

        - `judgement`: the last estimate of the error.
        - `anew`: whether to make another one.
        """
        response, info, here, value, cotangent = self._solve(estimator_state, hparams, accuracy)
        estimator = self._at(accuracy)
        if estimator.error_estimate is not None:
            estimator = eqx.tree_at(lambda e: e.error_estimate.wanted, estimator, anew)
        estimate = estimator.hypergradient(
            self.problem, response, hparams, here.inner_batch, here.outer_batch, key=self.key
        )
        residual = info.residual * self.scale
        norm = vector.norm(estimate.grad)
        constants = self._constants(here)
        if constants is None:
            relative = jnp.where(anew, estimate.info.error, judgement.foretold(accuracy))
            error = relative * norm
        else:
            linear = estimate.info.linear_residual * cotangent
            error = constants.hypergradient_error(residual, linear, cotangent)
            relative = error / jnp.where(norm > 0, norm, 1)
        adjoint = adjoint_of(estimate.state)
        dtype = self.scale.dtype
        return CertifiedPoint(
            estimate.state,
            value,
            *self._bounds(here, value, residual, cotangent, adjoint),
            inner_residual=info.residual.astype(dtype),
            calls=info.iterations
            + estimate.info.iterations
            + estimate.info.error_calls
            + 3
            + self._corrections,
            iterations=info.iterations,
            gradient=estimate.grad,
            adjoint=adjoint,
            error=error.astype(dtype),
            relative_error=relative.astype(dtype),
            linear_residual=estimate.info.linear_residual.astype(dtype),
            judgement=vector.where(
                anew,
                Judgement(relative.astype(dtype), accuracy, jnp.zeros((), jnp.int32)),
                dataclasses.replace(judgement, age=judgement.age + 1),
            ),
        )

    @property
    def _corrections(self) -> int:
        """Gradients of the inner loss that the correction of one outer loss takes."""
        return 1 if self.smoothness is None else 0

    def _at(self, accuracy: Accuracy) -> ImplicitDifferentiation:
        return with_tolerances(self.estimator, accuracy.inner * self.scale, accuracy.linear)

    def _solve(self, estimator_state: Any, hparams: PyTree, accuracy: Accuracy) -> tuple:
        """The response, its info, the problem there, the outer loss, and `‖∂F/∂w‖`."""
        response, info = self._at(accuracy).fit(
            self.problem, estimator_state, hparams, self.batches.linear, key=self.key
        )
        here = self.batches.restrict(self.problem, response.params, hparams, self.key)
        value, outer = outer_terms(here)
        return response, info, here, value.astype(self.scale.dtype), vector.norm(outer.params)

    def _bounds(
        self,
        here: RestrictedProblem,
        value: Scalar,
        residual: Scalar,
        cotangent: Scalar,
        adjoint: PyTree,
    ) -> tuple[Scalar, Scalar]:
        constants = self._constants(here)
        if constants is None:
            value, error = corrected_loss(value, adjoint, here.residual(), ADJOINT_ERROR)
        else:
            error = constants.value_error(residual, cotangent)
        dtype = self.scale.dtype
        return (value - error).astype(dtype), (value + error).astype(dtype)

    def _constants(self, here: RestrictedProblem) -> Smoothness | None:
        if self.smoothness is None or isinstance(self.smoothness, Smoothness):
            return self.smoothness
        return self.smoothness(here.params, here.hparams)
