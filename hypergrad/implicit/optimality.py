"""Optimality maps for inner problems that are not smooth, or constrained.

What vanishes at the solution, to be given as `BilevelProblem(inner, outer, optimality=...)`
(Blondel et al. 2022, "Efficient and modular implicit differentiation").
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require_function_fields, require_positive
from hypergrad.linear import vector
from hypergrad.problem import same_form
from hypergrad.residual import Oriented


class ProximalStep(Oriented):
    """The fixed point of a proximal (or projected) gradient step.

        r(w, λ) = (w − prox(w − s ∂smooth/∂w, λ, s)) / s

    vanishes at the minimiser of `smooth(w, λ) + penalty(w, λ)`. For a constraint the proximal
    operator is the projection. The derivative is right away from the hyperparameters at which the
    active set changes; there the inner solution has a kink.

    **Arguments:**

    - `smooth`: `smooth(params, hparams, batch) -> scalar`, the differentiable part.
    - `prox`: `prox(point, hparams, step) -> params`: the minimiser over `w` of
      `‖w − point‖² / (2 step) + penalty(w, hparams)`.
    - `step`: `s`, of the order of one over the largest curvature of `smooth`. The solution does
      not depend on it, the conditioning of the general system does.
    - `polyhedral`: declare that the Jacobian of `prox` is a projection, as for soft thresholding
      (Lasso), boxes, the simplex, and total variation. The system is then solved on the support
      (the active manifold) only, where it is the symmetric restriction of the Hessian: conjugate
      gradient serves, and the conditioning is that of the support. A declaration that is not true
      is found out at run time and reported as `info.breakdown`. The elastic net qualifies with its
      quadratic part in `smooth`; the group Lasso does not.

    For a stochastic problem `smooth` gets a fourth argument `key`.
    """

    smooth: Callable
    prox: Callable
    step: float | Scalar = 1.0
    polyhedral: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        require_function_fields(self, "smooth", "prox")
        require_positive("ProximalStep", "step", self.step)

    def __call__(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """The residual at `params`."""
        moved = self.prox(self.forward(params, hparams, batch, *key), hparams, self.step)
        dynamic = eqx.filter(params, eqx.is_inexact_array)
        moved = eqx.filter(moved, eqx.is_inexact_array)
        return vector.scale(1 / self.step, vector.sub(dynamic, moved))

    def parts(self) -> list[Callable]:
        """The user's functions, each as `(params, hparams, batch[, key])`."""
        return [self.smooth, lambda point, hparams, *_: self.prox(point, hparams, self.step)]

    def forward(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """The gradient step `w − s ∂smooth/∂w`, before the proximal operator."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)
        gradient = self.gradient(params, hparams, batch, *key)
        return eqx.combine(vector.axpy(-self.step, gradient, dynamic), static)

    def gradient(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """`∂smooth/∂w`, like params (`None` where not differentiable)."""
        return eqx.filter_grad(lambda p: self.smooth(p, hparams, batch, *key))(params)


class FixedPoint(Oriented):
    """The fixed point `w = T(w, λ)` of a map, such as a deep equilibrium layer or a training step.

    The residual is `w − T(w, λ)`: of a contraction its Jacobian is near the identity, which is what
    `Neumann` and `Identity` are made for.

    **Arguments:**

    - `step`: `step(params, hparams, batch) -> params`, the map `T`.

    For a stochastic problem `step` gets a fourth argument `key`.
    """

    step: Callable

    def __check_init__(self) -> None:
        require_function_fields(self, "step")

    def __call__(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """The residual at `params`."""
        moved = self.step(params, hparams, batch, *key)
        dynamic, moved = (eqx.filter(t, eqx.is_inexact_array) for t in (params, moved))
        return vector.sub(dynamic, moved)


class KKT(Oriented):
    """The Karush-Kuhn-Tucker conditions of a constrained inner problem.

    For `minimise objective(x, λ) subject to constraint(x, λ) = 0, inequality(x, λ) <= 0` the inner
    parameters are the tuple `(x, y, z)` of the solution and its multipliers, and

        r = (∂objective/∂x + (∂constraint/∂x)ᵀ y + (∂inequality/∂x)ᵀ z,
             constraint,
             min(z, −inequality))

    The minimum is the complementarity `z >= 0, inequality <= 0, z · inequality = 0` in one equation
    (Qi & Sun 1993): its derivative takes the active inequalities as equations, and the multipliers
    of the others as zero. So `Newton` is a primal-dual active-set method (Hintermüller, Ito &
    Kunisch 2002). The derivative is right where each inequality has either a positive multiplier or
    room; where both are zero the solution has a kink, and the derivative is that of one side.

    **Arguments:**

    - `objective`: `objective(x, hparams, batch) -> scalar`.
    - `constraint`: `constraint(x, hparams, batch) -> pytree`, zero where it holds; `y` has its
      structure and shapes. `None` without equations: the parameters are then `(x, z)`.
    - `inequality`: `inequality(x, hparams, batch) -> pytree`, at most zero where it holds; `z` has
      its structure and shapes. `None` without inequalities: the parameters are then `(x, y)`.

    For a stochastic problem each gets a fourth argument `key`. The outer loss gets the tuple, too.
    """

    objective: Callable
    constraint: Callable | None = None
    inequality: Callable | None = None

    def __check_init__(self) -> None:
        if self.constraint is None and self.inequality is None:
            raise ValueError("KKT: expected a constraint or an inequality; both are None.")
        require_function_fields(self, "objective", optional=("constraint", "inequality"))

    def parts(self) -> list[Callable]:
        """The user's functions, each as `(params, hparams, batch[, key])`."""
        return [
            lambda params, *rest, part=part: part(params[0], *rest)
            for part in (self.objective, self.constraint, self.inequality)
            if part is not None
        ]

    def __call__(self, params: PyTree, hparams: PyTree, batch: PyTree, *key: Array) -> PyTree:
        """The residual at `params`."""
        restrictions = [part for part in (self.constraint, self.inequality) if part is not None]
        if not (isinstance(params, tuple) and len(params) == 1 + len(restrictions)):
            wanted = "triple (x, y, z)"
            if len(restrictions) == 1:
                wanted = "pair (x, z)" if self.constraint is None else "pair (x, y)"
            raise ValueError(
                f"With KKT, params: expected the {wanted} of the solution and the multipliers of "
                f"its constraints, received {type(params).__name__}."
            )
        x, *multipliers = params
        dynamic, static = eqx.partition(x, eqx.is_inexact_array)

        def at(part: Callable) -> Callable:
            return lambda p: part(eqx.combine(p, static), hparams, batch, *key)

        stationarity = jax.grad(at(self.objective))(dynamic)
        values = []
        for part, multiplier in zip(restrictions, multipliers, strict=True):
            value, pull = jax.vjp(at(part), dynamic)
            if not same_form(value, multiplier):
                raise ValueError(
                    "KKT: the multipliers must have the shapes of the constraint: expected "
                    f"{jax.tree.map(jnp.shape, value)}, received "
                    f"{jax.tree.map(jnp.shape, multiplier)}."
                )
            stationarity = jax.tree.map(jnp.add, stationarity, pull(multiplier)[0])
            if part is self.inequality:
                value = jax.tree.map(_complementarity, multiplier, value)
            values.append(value)
        return stationarity, *values


def _complementarity(multiplier: Array, value: Array) -> Array:
    """`min(z, −h)`, by selection: at a tie `jnp.minimum` would average the two derivatives."""
    return jnp.where(multiplier + value > 0, -value, multiplier)
