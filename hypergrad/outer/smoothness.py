"""Bounds of inexact hypergradients and outer losses from the constants of a problem."""

import math

import equinox as eqx
from jaxtyping import Scalar


class Smoothness(eqx.Module):
    """Constants of a strongly convex inner problem, for bounds that hold without exception.

    With `ε = ‖∂f/∂w‖ / μ >= ‖w − w*‖` and `δ` the absolute residual of the linear system,

        ‖z − dF/dλ‖ <= c ε + (|C| / μ) δ + (L_g L_C / μ) ε²
        c = L_g |C| / μ + L_H |g| |C| / μ² + L_C |g| / μ + L_d

    **Arguments:**

    - `strong_convexity`: `μ`, smallest eigenvalue of `∂²f/∂w²` over all `w`; positive.
    - `mixed`: `|C|`, operator norm of `∂²f/∂w∂λ` at the computed point.
    - `outer`: `L_g`, Lipschitz constant of `∂F/∂w` in `w`.
    - `mixed_change`: `L_C`, Lipschitz constant of `∂²f/∂w∂λ` in `w`. Default 0.
    - `hessian_change`: `L_H`, Lipschitz constant of `∂²f/∂w²` in `w`. Default 0 (quadratic).
    - `direct_change`: `L_d`, Lipschitz constant of `∂F/∂λ` in `w`. Default 0.

    **Raises:** `ValueError` naming the first constant that is negative or not finite (for `μ`: not
    positive).
    """

    strong_convexity: float | Scalar
    mixed: float | Scalar
    outer: float | Scalar
    mixed_change: float | Scalar = 0.0
    hessian_change: float | Scalar = 0.0
    direct_change: float | Scalar = 0.0

    def __check_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, float | int):
                continue
            low = value > 0 if name == "strong_convexity" else value >= 0
            if not (low and math.isfinite(value)):
                kind = "positive" if name == "strong_convexity" else "non-negative"
                raise ValueError(
                    f"Smoothness: {name}: expected {kind} and finite, received {value}."
                )

    def hypergradient_error(self, residual: Scalar, linear: Scalar, cotangent: Scalar) -> Scalar:
        """The bound `ω`, from `‖∂f/∂w‖`, the absolute linear residual and `‖∂F/∂w‖`."""
        mu, mixed = self.strong_convexity, self.mixed
        distance = residual / mu
        slope = (
            self.outer * mixed / mu
            + self.hessian_change * cotangent * mixed / mu**2
            + self.mixed_change * cotangent / mu
            + self.direct_change
        )
        curved = self.outer * self.mixed_change / mu * distance**2
        return slope * distance + mixed / mu * linear + curved

    def value_error(self, residual: Scalar, cotangent: Scalar) -> Scalar:
        """Bound of the error of the outer loss, from `‖∂f/∂w‖` and `‖∂F/∂w‖`."""
        distance = residual / self.strong_convexity
        return cotangent * distance + self.outer / 2 * distance**2
