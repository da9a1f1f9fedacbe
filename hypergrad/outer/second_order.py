"""Whether a stationary point of a game is a local minimax point, to second order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import received, require_finite, require_function, require_numbers


@dataclass(frozen=True)
class SecondOrderReport:
    """What `second_order_report` found; `str(report)` says it in words.

    - `gradient_norms`: `‖∂f/∂x‖` and `‖∂f/∂y‖`: zero at a stationary point.
    - `opponent`: eigenvalues of `B = ∂²f/∂y²`, ascending; none may be positive.
    - `nullity`: how many of them are zero to the tolerance.
    - `restricted`: eigenvalues of the restricted Schur complement `S`, ascending; none may be
      negative. Empty where the opponent's flat directions pin every direction of `x`.
    - `verdict`: `"strict"`: all of `restricted` positive, and all of `opponent` negative: a strict
      local minimax point. `"necessary"`: the second-order necessary condition holds.
      `"no"`: it does not. `"not stationary"`: the condition is about stationary points.
    """

    gradient_norms: tuple[float, float]
    opponent: np.ndarray
    nullity: int
    restricted: np.ndarray
    verdict: Literal["strict", "necessary", "no", "not stationary"]

    @property
    def ok(self) -> bool:
        """The necessary condition holds."""
        return self.verdict in ("strict", "necessary")

    def __str__(self) -> str:
        words = {
            "strict": "a strict local minimax point",
            "necessary": "the second-order necessary condition of a local minimax point holds",
            "no": "not a local minimax point",
            "not stationary": "not a stationary point",
        }
        least = f"least {self.restricted[0]:.3g}" if self.restricted.size else "none left"
        return (
            f"{words[self.verdict]}: gradient norms {self.gradient_norms[0]:.2g} and "
            f"{self.gradient_norms[1]:.2g}, opponent's curvature up to {self.opponent[-1]:.3g} "
            f"({self.nullity} of {self.opponent.size} zero), restricted Schur complement: {least}"
        )


def second_order_report(
    f: Callable[..., Scalar],
    params: PyTree,
    hparams: PyTree,
    batch: PyTree = None,
    *,
    gradient_tol: float = 1e-4,
    rank_tol: float | None = None,
) -> SecondOrderReport:
    """The second-order condition of Chae, Kim and Kim (2024) at a point of `min_x max_y f`.

    With `A = ∂²f/∂x²`, `B = ∂²f/∂y²`, `C = ∂²f/∂x∂y` and `V` a basis of the null space of `B`, let
    `U` be a basis of the null space of `(C V)ᵀ`. The condition is `B <= 0` and
    `S = Uᵀ (A − C B⁺ Cᵀ) U >= 0`. For a regular `B` that is the usual Schur complement.

    About players that move freely: at a point where a set binds, give `f` in the coordinates that
    are free. All matrices are formed: for up to some thousand unknowns. Float64 makes it sharp.

    **Arguments:**

    - `f`: `f(params, hparams, batch) -> scalar`, as `BilevelProblem.minimax` takes it.
    - `params`, `hparams`: the opponent `y` and the hyperparameters `x`, any pytrees.
    - `batch`: the data of `f`.
    - `gradient_tol`: gradients up to this norm are stationary. Default 1e-4.
    - `rank_tol`: eigenvalues up to this share of the largest entry of any block are zero. Default:
      the square root of the rounding error (1.5e-8 in float64).
    """
    require_function("second_order_report", "f", f)
    require_finite("second_order_report", "gradient_tol", gradient_tol)
    if rank_tol is not None:
        require_finite("second_order_report", "rank_tol", rank_tol)
    for name, tree in (("params", params), ("hparams", hparams)):
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, jax.Array):
                require_numbers("second_order_report", name, leaf)
    (y, y_static), (x, x_static) = (
        eqx.partition(jax.tree.map(jnp.asarray, tree), eqx.is_inexact_array)
        for tree in (params, hparams)
    )
    flat_y, unravel_y = ravel_pytree(y)
    flat_x, unravel_x = ravel_pytree(x)
    split = flat_x.size

    def whole(z: Array) -> Scalar:
        opponent = eqx.combine(unravel_y(z[split:]), y_static)
        value = f(opponent, eqx.combine(unravel_x(z[:split]), x_static), batch)
        if not isinstance(value, jax.Array | float | int | np.number) or jnp.ndim(value):
            raise ValueError(
                f"second_order_report: f: expected a scalar, received {received(value)}."
            )
        return jnp.asarray(value, z.dtype)

    z = jnp.concatenate([flat_x, flat_y])
    if rank_tol is None:
        rank_tol = float(jnp.sqrt(jnp.finfo(z.dtype).eps))
    gradient = np.asarray(jax.grad(whole)(z), np.float64)
    hessian = np.asarray(jax.hessian(whole)(z), np.float64)
    a, b = hessian[:split, :split], hessian[split:, split:]
    c = hessian[:split, split:]
    zero = rank_tol * max(float(np.max(np.abs(hessian), initial=0.0)), np.finfo(float).tiny)

    eigenvalues, vectors = np.linalg.eigh(b)
    flat = np.abs(eigenvalues) <= zero
    inverse = vectors[:, ~flat] / eigenvalues[~flat] @ vectors[:, ~flat].T
    schur = a - c @ inverse @ c.T
    left, singular, _ = np.linalg.svd(c @ vectors[:, flat])
    basis = left[:, int(np.sum(singular > zero)) :]
    restricted = np.linalg.eigvalsh(basis.T @ schur @ basis) if basis.shape[1] else np.empty(0)

    norms = float(np.linalg.norm(gradient[:split])), float(np.linalg.norm(gradient[split:]))
    verdict: Literal["strict", "necessary", "no", "not stationary"] = "necessary"
    if not max(norms) <= gradient_tol:  # written so that NaN is not stationary, too
        verdict = "not stationary"
    elif np.any(eigenvalues > zero) or np.any(restricted < -zero):
        verdict = "no"
    elif not flat.any() and np.all(restricted > zero):
        verdict = "strict"
    return SecondOrderReport(norms, eigenvalues, int(flat.sum()), restricted, verdict)
