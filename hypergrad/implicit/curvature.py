"""What stands for the Hessian of the inner loss in the adjoint system."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from hypergrad.expected import require_function_fields
from hypergrad.implicit.adjoint import JacobianSystem, LinearSystem, SupportSystem
from hypergrad.implicit.optimality import ProximalStep
from hypergrad.linear import vector
from hypergrad.linear.jacobian import jacobian_operator
from hypergrad.restricted import RestrictedProblem


class Curvature(eqx.Module):
    """Linearises the inner gradient once, for all products of a solve."""

    @abstractmethod
    def linearize(self, given: RestrictedProblem) -> tuple[PyTree, LinearSystem]:
        """The inner residual at a point, and its linearisation there."""


class Hessian(Curvature):
    """The Hessian of the inner loss, or the Jacobian of the optimality map.

    For a polyhedral `ProximalStep` the system is reduced to the support.
    """

    def linearize(self, given: RestrictedProblem) -> tuple[PyTree, LinearSystem]:
        """See `Curvature.linearize`."""
        step, w = given.problem.optimality, given.w
        if not (isinstance(step, ProximalStep) and step.polyhedral):
            residual, product = jax.linearize(given.residual, w)
            return residual, JacobianSystem(jacobian_operator(product, w, symmetric=step is None))

        arguments = (given.hparams, given.inner_batch, *given.extra)
        moved = eqx.filter(step.forward(given.params, *arguments), eqx.is_inexact_array)

        def prox(p: PyTree) -> PyTree:
            landed = step.prox(given.params_at(p), given.hparams, step.step)
            return eqx.filter(landed, eqx.is_inexact_array)

        _, project = jax.linearize(prox, moved)
        _, hessian = jax.linearize(lambda p: step.gradient(given.params_at(p), *arguments), w)
        return given.residual(), SupportSystem(
            vector.widened(project, w), vector.widened(hessian, w), step.step
        )


class GaussNewton(Curvature):
    """The generalised Gauss-Newton matrix `Jᵀ (∂²loss/∂o²) J + ∂²penalty/∂w²` (Schraudolph 2002).

    For an inner loss `loss(outputs(w, λ), λ) + penalty(w, λ)`. With a loss convex in the outputs it
    is positive semi-definite even where the Hessian is not: the safe choice for networks that are
    not trained to the end. Only the adjoint system uses it; the mixed product stays exact. The
    error estimate contains its bias.

    **Arguments:**

    - `outputs`: `outputs(params, hparams, batch) -> o`, the model's predictions, any pytree.
    - `loss`: `loss(o, hparams, batch) -> scalar`, convex in `o`.
    - `penalty`: optional `penalty(params, hparams) -> scalar`, used with its full Hessian.

    For a stochastic problem `outputs` gets a fourth argument `key`.
    """

    outputs: Callable
    loss: Callable
    penalty: Callable | None = None

    def __check_init__(self) -> None:
        require_function_fields(self, "outputs", "loss", optional=("penalty",))

    def linearize(self, given: RestrictedProblem) -> tuple[PyTree, LinearSystem]:
        """See `Curvature.linearize`."""
        if given.problem.optimality is not None:
            raise ValueError(
                "GaussNewton approximates the Hessian of an inner loss; this problem has an "
                "optimality map instead."
            )
        w, hparams, batch = given.w, given.hparams, given.inner_batch

        def outputs(p: PyTree) -> PyTree:
            return self.outputs(given.params_at(p), hparams, batch, *given.extra)

        def loss(o: PyTree) -> Scalar:
            return self.loss(o, hparams, batch)

        residual = given.residual()
        predictions, forward = jax.linearize(outputs, w)
        backward = jax.linear_transpose(forward, w)
        _, curve = jax.linearize(jax.grad(loss), predictions)
        if self.penalty is None:
            operator = jacobian_operator(
                lambda v: backward(curve(forward(v)))[0], w, symmetric=True
            )
            return residual, JacobianSystem(operator)

        def penalty(p: PyTree) -> Scalar:
            assert self.penalty is not None
            return self.penalty(given.params_at(p), hparams)

        _, bend = jax.linearize(jax.grad(penalty), w)

        def product(v: PyTree) -> PyTree:
            return jax.tree.map(jnp.add, backward(curve(forward(v)))[0], bend(v))

        return residual, JacobianSystem(jacobian_operator(product, w, symmetric=True))
