"""The risk of ridge regression in closed form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from hypergrad.expected import require_array, require_finite


def multi_task_ridge_risk(
    x: Float[Array, "n d"],
    weights: Float[Array, "d tasks"],
    sigma: float | Scalar,
    coupling: Float[Array, "rows columns"],
) -> Scalar:
    """`E ‖X Ŵ − X W‖²` over Gaussian noise, for `Ŵ` of `½‖Y − X W‖² + ½ tr(W Ω Wᵀ)`.

    A multiple of the identity for `Ω` is ridge regression for each task alone; off its diagonal it
    lets tasks share. For checks of estimates, and for designs where a truth is assumed. Costs one
    factor of a matrix of `d · tasks`.

    **Arguments:** `x`: design; `weights`: the truth `W`; `sigma`: standard deviation of the noise;
    `coupling`: `Ω`, positive definite.
    """
    for name, matrix in (("x", x), ("weights", weights), ("coupling", coupling)):
        require_array("multi_task_ridge_risk", name, matrix)
        if matrix.ndim != 2:
            raise ValueError(
                f"multi_task_ridge_risk: {name}: expected a matrix, received shape {matrix.shape}."
            )
    if not isinstance(sigma, jax.Array) or sigma.ndim:
        require_finite("multi_task_ridge_risk", "sigma", sigma)
    d, tasks = weights.shape
    if x.shape[1] != d:
        raise ValueError(
            f"multi_task_ridge_risk: x: expected {d} columns, as many as weights has rows, "
            f"received {x.shape[1]}."
        )
    if coupling.shape != (tasks, tasks):
        raise ValueError(
            f"multi_task_ridge_risk: 'coupling': expected shape {(tasks, tasks)}, received "
            f"{coupling.shape}."
        )
    gram = jnp.kron(jnp.eye(tasks, dtype=x.dtype), x.T @ x)
    penalty = jnp.kron(coupling, jnp.eye(d, dtype=x.dtype))
    # Of the estimate: bias −M⁻¹ Ω w, covariance σ² M⁻¹ G M⁻¹, with M = G + Ω.
    bias = jnp.linalg.solve(gram + penalty, penalty @ weights.T.reshape(-1))
    smoother = jnp.linalg.solve(gram + penalty, gram)
    return bias @ gram @ bias + sigma**2 * jnp.sum(smoother * smoother.T)
