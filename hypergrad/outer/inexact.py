"""What HOAG and MAID share: solves of chosen accuracy, and losses corrected for what is left."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require
from hypergrad.implicit import ImplicitDifferentiation, ImplicitState
from hypergrad.linear import vector
from hypergrad.outer.base import OuterAlgorithm
from hypergrad.outer.batches import Batches
from hypergrad.problem import BilevelProblem
from hypergrad.tolerance import HasTolerance


def with_tolerances(
    estimator: ImplicitDifferentiation, inner: Array | float, linear: Array | float
) -> ImplicitDifferentiation:
    """The estimator with other tolerances.

    **Arguments:**

    - `inner`: the inner solver stops at `‖∂f/∂w‖ <= inner`.
    - `linear`: the linear solver stops at this relative residual.
    """
    solver, linear_solver = estimator.solver, estimator.linear_solver
    assert isinstance(solver, HasTolerance)
    assert isinstance(linear_solver, HasTolerance)
    return eqx.tree_at(
        lambda e: (e.solver, e.linear_solver),
        estimator,
        (solver.with_tol(inner), linear_solver.with_tol(linear)),
    )


def require_tolerances(algorithm: OuterAlgorithm, estimator: Any) -> None:
    """Refuse an estimator whose accuracy cannot be chosen.

    **Raises:** `ValueError` saying what lacks a tolerance.
    """
    name = type(algorithm).__name__
    require(name, "estimator", estimator, ImplicitDifferentiation, "ImplicitDifferentiation()")
    for role, solver in (("solver", estimator.solver), ("linear_solver", estimator.linear_solver)):
        if not isinstance(solver, HasTolerance):
            raise ValueError(
                f"{name} chooses the accuracy of the estimator's {role}: expected one with a "
                f"tolerance (`OptaxSolver`, `Newton`; `CG`), received {type(solver).__name__}."
            )


def require_fixed_losses(
    algorithm: OuterAlgorithm, problem: BilevelProblem, batches: Batches
) -> None:
    """Refuse mini-batches and noise: only losses of the same data and noise can be compared.

    **Raises:** `ValueError` naming the algorithms that take them.
    """
    rows = (batches.inner_rows, batches.linear_rows, batches.outer_rows)
    if any(x is not None for x in rows):
        expected = "all of the data in every step (`FullBatch()`, the default)"
        received = "mini-batches"
    elif problem.stochastic:
        expected = "a problem without noise, or with one key of its own"
        received = "a stochastic one, which gets a new key in every step"
    else:
        return
    raise ValueError(
        f"{type(algorithm).__name__} compares outer losses from step to step: expected "
        f"{expected}, received {received}. Use Alternating or a stochastic method, such as SABA."
    )


def adjoint_of(state: ImplicitState) -> PyTree:
    """The adjoint `q` of the last hypergradient, in full size."""
    return vector.scale(state.cotangent_size, state.adjoint)


def corrected_loss(
    value: Scalar, adjoint: PyTree, residual: PyTree, adjoint_error: float
) -> tuple[Scalar, Scalar]:
    """The outer loss at the best response, estimated from a point that is not quite there.

    To first order the inner residual `r` changes the outer loss by `⟨q, r⟩`, which is subtracted;
    what is left is of the order of `‖r‖²` (Pierce & Giles, "Adjoint recovery of superconvergent
    functionals from PDE approximations", 2000).

    **Arguments:**

    - `value`: the outer loss at the point.
    - `adjoint`: `q`, solved roughly, or at hyperparameters nearby.
    - `residual`: `r = ∂f/∂w` at the point.
    - `adjoint_error`: relative error of `q`.

    **Returns:** the corrected loss, and how far it may be off: the share that `adjoint_error` has
    in the bound `‖q‖ ‖r‖` of the effect, and half of the effect for what is beyond first order.
    """
    effect = vector.vdot(adjoint, residual)
    bound = vector.norm(adjoint) * vector.norm(residual)
    return value - effect, adjoint_error * bound + jnp.abs(effect) / 2
