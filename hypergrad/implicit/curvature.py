"""What stands for the Hessian of the inner loss in the adjoint system."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.implicit.adjoint import JacobianSystem, LinearSystem, SupportSystem
from hypergrad.implicit.optimality import ProximalStep
from hypergrad.linear import vector
from hypergrad.linear.jacobian import jacobian_operator
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_of


class Curvature(eqx.Module):
    """Linearises the inner gradient once, for all products of a solve."""

    @abstractmethod
    def linearize(
        self,
        problem: BilevelProblem,
        dynamic: PyTree,
        static: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, LinearSystem]:
        """The inner residual at `dynamic`, and its linearisation there.

        **Arguments:**

        - `dynamic`, `static`: the two parts of params, as of `equinox.partition`.
        """


class Hessian(Curvature):
    """The Hessian of the inner loss, or the Jacobian of the optimality map.

    For a polyhedral `ProximalStep` the system is reduced to the support.
    """

    def linearize(
        self,
        problem: BilevelProblem,
        dynamic: PyTree,
        static: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, LinearSystem]:
        """See `Curvature.linearize`."""
        residual_at = residual_of(problem, static, hparams, batch, key)
        step = problem.optimality
        if not (isinstance(step, ProximalStep) and step.polyhedral):
            residual, product = jax.linearize(residual_at, dynamic)
            operator = jacobian_operator(product, dynamic, symmetric=step is None)
            return residual, JacobianSystem(operator)

        extra = (key,) if problem.stochastic else ()
        point = eqx.combine(dynamic, static)
        moved = eqx.filter(step.forward(point, hparams, batch, *extra), eqx.is_inexact_array)

        def prox(p: PyTree) -> PyTree:
            landed = step.prox(eqx.combine(p, static), hparams, step.step)
            return eqx.filter(landed, eqx.is_inexact_array)

        _, project = jax.linearize(prox, moved)
        _, hessian = jax.linearize(
            lambda p: step.gradient(p, static, hparams, batch, *extra), dynamic
        )
        return residual_at(dynamic), SupportSystem(
            vector.widened(project, dynamic), vector.widened(hessian, dynamic), step.step
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

    def linearize(
        self,
        problem: BilevelProblem,
        dynamic: PyTree,
        static: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, LinearSystem]:
        """See `Curvature.linearize`."""
        if problem.optimality is not None:
            raise ValueError(
                "GaussNewton approximates the Hessian of an inner loss; this problem has an "
                "optimality map instead."
            )
        extra = (key,) if problem.stochastic else ()

        def outputs(p: PyTree) -> PyTree:
            return self.outputs(eqx.combine(p, static), hparams, batch, *extra)

        def loss(o: PyTree) -> Scalar:
            return self.loss(o, hparams, batch)

        residual = residual_of(problem, static, hparams, batch, key)(dynamic)
        predictions, forward = jax.linearize(outputs, dynamic)
        backward = jax.linear_transpose(forward, dynamic)
        _, curve = jax.linearize(jax.grad(loss), predictions)
        if self.penalty is None:
            operator = jacobian_operator(
                lambda v: backward(curve(forward(v)))[0], dynamic, symmetric=True
            )
            return residual, JacobianSystem(operator)

        def penalty(p: PyTree) -> Scalar:
            assert self.penalty is not None
            return self.penalty(eqx.combine(p, static), hparams)

        _, bend = jax.linearize(jax.grad(penalty), dynamic)

        def product(v: PyTree) -> PyTree:
            return jax.tree.map(jnp.add, backward(curve(forward(v)))[0], bend(v))

        return residual, JacobianSystem(jacobian_operator(product, dynamic, symmetric=True))
