"""Learning under constraints: the dual function as a bilevel problem.

    minimise over w   objective(w)   subject to   constraints(w) <= bounds

The multipliers `λ` are the hyperparameters, the dual function `d(λ) = min over w of the Lagrangian`
the (negative) outer loss. Its hypergradient is the slack of the constraints (Danskin).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from hypergrad.envelope import ValueProblem
from hypergrad.expected import require_function, require_number, require_positive
from hypergrad.outer.lagrangian import Lagrangian, NegativeDual


class ConstrainedProblem(ValueProblem):
    """Minimise an objective under constraints, by their multipliers.

    `params` are the model's, `hparams` the multipliers: a pytree like `constraints(params, batch)`,
    from `multipliers`. As a `BilevelProblem`, `inner` is the Lagrangian and `outer` its negative:
    minimising over the multipliers maximises the dual function. `inner_data` are what the params
    are trained on, `outer_data` those on which the constraints must hold; they may be the same.

    With `rows` there is one constraint, and one multiplier, for each example: `constraints` gives
    one number for each example of the batch, the multipliers have one for each of the data, and
    the Lagrangian adds the *mean* of the products over the batch.

    **Arguments:**

    - `objective`: `objective(params, batch) -> scalar`. `None`: nothing is minimised, any point
      that meets the constraints will do (feasible learning).
    - `constraints`: `constraints(params, batch) -> array or pytree of arrays`, differentiable.
    - `bounds`: what each must not exceed, in its own unit: a pytree prefix of `constraints`' value,
      each broadcast to its part.
    - `equality`: a pytree prefix of booleans: `True` where the constraint must equal its bound.
      Default `False`.
    - `rows`: `rows(batch) -> integers`, the numbers of the batch's examples among all.
    - `measured`: `measured(params, batch)`, like `constraints`, need not be differentiable: the
      rates that are meant, where `constraints` are smooth surrogates. Multipliers and verdicts
      follow `measured`, params the surrogates (the proxy Lagrangian of Cotter et al. 2019). It is
      seen by `DualAscent` only.
    - `slack`: `α > 0` lets constraints be exceeded by `s` at the price of `α ‖s‖² / 2`, so that any
      bounds can be met: `s = λ / α` (resilient feasible learning). Default: not at all.
    - `tolerance`: a point is feasible that exceeds no bound by more. Default 1e-3.
    - `stochastic`: all functions take a further argument `key`.

    A run is judged by the objective at feasible points and by infinity elsewhere, so that
    `Result.best` is the best feasible point, `Result.holdout_best` the best among those that are
    feasible on the held-out data.
    """

    advice: ClassVar[str] = (
        "constraints: hypergrad.outer.DualAscent moves params and multipliers in turn; "
        "Alternating(Envelope(solver), optimizer) solves for the params first"
    )
    lagrangian: Lagrangian = None  # type: ignore[assignment]
    equality: PyTree = False
    tolerance: float = 1e-3

    def __init__(
        self,
        objective: Callable | None,
        constraints: Callable,
        bounds: PyTree,
        *,
        equality: PyTree = False,
        rows: Callable | None = None,
        measured: Callable | None = None,
        slack: float | Scalar | None = None,
        tolerance: float = 1e-3,
        stochastic: bool = False,
    ) -> None:
        require_function("ConstrainedProblem", "constraints", constraints)
        if objective is not None:
            require_function("ConstrainedProblem", "objective", objective)
        require_number("ConstrainedProblem", "tolerance", tolerance)
        for path, leaf in jax.tree_util.tree_leaves_with_path(bounds):
            try:
                finite = bool(np.all(np.isfinite(np.asarray(leaf, np.float64))))
            except (TypeError, ValueError, OverflowError):
                finite = False
            if not finite:
                raise ValueError(
                    f"ConstrainedProblem: bounds{jax.tree_util.keystr(path)}: expected finite "
                    f"numbers, received {leaf}; leave out a constraint that does not bind."
                )
        require_positive("ConstrainedProblem", "slack", slack)
        if not tolerance >= 0:
            raise ValueError(
                f"ConstrainedProblem: tolerance: expected a number >= 0, received {tolerance!r}."
            )
        bounds = jax.tree.map(jnp.asarray, bounds)
        self.lagrangian = Lagrangian(objective, constraints, bounds, rows, measured, slack)
        self.equality = equality
        self.tolerance = tolerance
        self.inner = self.lagrangian
        self.outer = NegativeDual(self.lagrangian)
        self.optimality = None
        self.has_aux = False
        self.stochastic = stochastic

    def multipliers(
        self, params: PyTree, batch: PyTree, count: int | None = None, *, value: float = 0.0
    ) -> PyTree:
        """Multipliers to start from, in the shapes and types of the constraints.

        **Arguments:**

        - `params`, `batch`: a point and some data, for the shapes; nothing is computed.
        - `count`: with `rows`, the number of examples in all.
        - `value`: of every multiplier. Default 0. For one constraint an example 1 is better: with
          no objective, params do not move while all multipliers are zero.
        """
        if (count is None) != (self.lagrangian.rows is None):
            raise ValueError(
                "multipliers: count: expected the number of examples if, and only if, the problem "
                f"has `rows`; received {count!r}."
            )
        key = (jax.random.key(0),) if self.stochastic else ()
        shapes = eqx.filter_eval_shape(self.lagrangian.constraints, params, batch, *key)

        def start(shape: Any) -> Array:
            return jnp.full(shape.shape if count is None else (count,), value, shape.dtype)

        return jax.tree.map(start, shapes)

    def parts(
        self, params: PyTree, batch: PyTree, key: Array | None = None, *, measured: bool = False
    ) -> tuple[Scalar, PyTree]:
        """See `Lagrangian.parts`."""
        return self.lagrangian.parts(params, batch, *self._key(key), measured=measured)

    def violation(self, excess: PyTree) -> Scalar:
        """The largest excess, at least 0; of equalities its size."""
        largest = jax.tree.map(
            lambda equal, part: jnp.max(
                jnp.stack([jnp.max(jnp.abs(x) if equal else x) for x in jax.tree.leaves(part)])
            ),
            self.equality,
            excess,
        )
        return jnp.maximum(jnp.max(jnp.stack(jax.tree.leaves(largest))), 0)

    def project_hparams(self, hparams: PyTree) -> PyTree:
        """Multipliers of inequalities are not negative."""
        return jax.tree.map(
            lambda equal, part: part if equal else jax.tree.map(lambda m: jnp.maximum(m, 0), part),
            self.equality,
            hparams,
        )

    def sensitivities(self, multipliers: PyTree) -> PyTree:
        """`d objective* / d bound` at the solution: minus the multiplier.

        With `rows`, of the bound of one example: minus the multiplier over their number.
        """
        if self.lagrangian.rows is None:
            return jax.tree.map(jnp.negative, multipliers)
        return jax.tree.map(lambda m: -m / m.shape[0], multipliers)

    def evaluation_loss(
        self, params: PyTree, hparams: PyTree, batch: PyTree, key: Array | None = None
    ) -> Scalar:
        """The objective at a feasible point, infinity elsewhere."""
        objective, excess = self.parts(params, batch, key, measured=True)
        return self.judged(objective, self.violation(excess))

    def judged(self, objective: Scalar, violation: Scalar) -> Scalar:
        """See `evaluation_loss`; a violation that is NaN is infeasible."""
        return jnp.where(violation <= self.tolerance, objective, jnp.inf)

    def check_start(self, params: PyTree, hparams: PyTree) -> None:
        """Refuse multipliers that are negative where the constraint is an inequality.

        **Raises:** `ValueError` naming the leaf.
        """
        allowed = jax.tree.leaves(self.project_hparams(hparams))
        given = jax.tree_util.tree_leaves_with_path(hparams)
        for (path, leaf), nearest in zip(given, allowed, strict=True):
            if not bool(jnp.all(leaf == nearest)):  # NaN included
                raise ValueError(
                    f"hparams{jax.tree_util.keystr(path)}: multipliers of inequalities: expected "
                    f"numbers >= 0, received {float(jnp.min(leaf))}."
                )
