"""Two-timescale extragradient: both players look one step ahead before they move.

    z  <-  P(z − η Λ F(P(z − η Λ F(z)))),      Λ = diag(1/τ for the hyperparameters, 1)

with `F` the slope that each player descends, `P` the projection onto both sets. Plain simultaneous
descent spirals away from the solution of a game that is linear in one player; looking ahead turns
the rotation into a contraction. With a ratio `τ` that is large enough the limits are the points
that satisfy the second-order necessary condition of a local minimax, also where the opponent's
Hessian is singular.

Korpelevich, "The extragradient method for finding saddle points and other problems" (1976); Chae,
Kim and Kim, "Two-timescale extragradient for finding local minimax points" (ICLR 2024).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.envelope import ValueProblem
from hypergrad.expected import require_positive
from hypergrad.linear import vector
from hypergrad.outer.base import (
    BREAKDOWN,
    RUNNING,
    OuterAlgorithm,
    OuterInfo,
    OuterState,
    differentiable,
    first_state,
    outer_info,
    step_on,
)
from hypergrad.outer.batches import Batches
from hypergrad.outer.constraints import project
from hypergrad.problem import BilevelProblem


class Extragradient(OuterAlgorithm):
    """Hyperparameters and params of a `ValueProblem` move at once, each after a look ahead.

    Of a `MinimaxProblem` the hyperparameters minimise `f` and the params, `ratio` times faster,
    maximise it; of a `ConstrainedProblem` the multipliers maximise the Lagrangian and the params
    minimise it. Judge the last iterate: there is no averaging.

    Both half-steps of a step see the same mini-batch and the same key.

    **Arguments:**

    - `step`: `η`, the step of the params; below `1 / L` for a field `F` that is `L`-Lipschitz. Too
      small can be wrong, too: where the objective curves the wrong way along directions in which
      the opponent's Hessian is zero, only a step that is not small contracts.
    - `ratio`: `τ >= 1`, how much slower the hyperparameters move. Default 1.
    - `constraint`: feasible set of the hyperparameters; see `hypergrad.outer.project`. What the
      problem itself demands (multipliers that are not negative, an opponent's set) is projected on
      as well.
    - `look_ahead`: `False` leaves out the first half-step: two-timescale gradient descent-ascent,
      to compare with, at half the cost.

    `OuterInfo.value` is the problem's evaluation loss at the point from which the step is taken, on
    the step's outer batch. `stationarity` is `‖z − P(z − F(z))‖` of both players together, so that
    `run(tol=)` is about the whole game; `inner_residual` is the params' part of it, absolute.
    """

    step_size: float | Scalar
    ratio: float | Scalar
    look_ahead: bool = eqx.field(static=True)
    constraint: PyTree = None

    def __init__(
        self,
        step: float | Scalar,
        ratio: float | Scalar = 1.0,
        *,
        constraint: PyTree = None,
        look_ahead: bool = True,
    ) -> None:
        require_positive("Extragradient", "step", step)
        if isinstance(ratio, float | int) and not ratio >= 1:
            raise ValueError(f"Extragradient: ratio: expected a number >= 1, received {ratio!r}.")
        self.step_size = step
        self.ratio = ratio
        self.constraint = constraint
        self.look_ahead = look_ahead

    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batches: Batches,
        key: Array | None = None,
    ) -> OuterState:
        """See `OuterAlgorithm.init`.

        **Raises:** `ValueError` for a problem that is no `ValueProblem`.
        """
        require_value_problem(problem, "Extragradient")
        return first_state(OuterState, params, hparams)

    def step(
        self,
        problem: BilevelProblem,
        state: OuterState,
        batches: Batches,
        key: Array | None = None,
    ) -> tuple[OuterState, OuterInfo]:
        """See `OuterAlgorithm.step`."""
        problem = require_value_problem(problem, "Extragradient")

        def slopes(params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
            return problem.slopes(params, hparams, batches.linear, batches.outer, key)

        def moved(
            by_params: PyTree, by_hparams: PyTree, fast: Array | float, slow: Array | float
        ) -> tuple[PyTree, PyTree]:
            """From where the step begins, along the slopes given."""
            params = eqx.apply_updates(state.params, vector.scale(-fast, by_params))
            hparams = eqx.apply_updates(state.hparams, vector.scale(-slow, by_hparams))
            hparams = project(self.constraint, problem.project_hparams(hparams))
            return problem.project_params(params), hparams

        fast, slow = self.step_size, self.step_size / self.ratio
        here = slopes(state.params, state.hparams)
        ahead = slopes(*moved(*here, fast, slow)) if self.look_ahead else here
        params, hparams = moved(*ahead, fast, slow)
        value = problem.evaluation_loss(state.params, state.hparams, batches.outer, key)
        good = vector.all_finite((differentiable(params), differentiable(hparams), *ahead))

        unit = moved(*here, 1.0, 1.0)
        own = vector.norm(vector.sub(differentiable(state.params), differentiable(unit[0])))
        other = vector.norm(vector.sub(differentiable(state.hparams), differentiable(unit[1])))
        new = OuterState(state.step + 1, hparams, hparams, params, here[1])
        info = outer_info(
            value,
            here[1],
            state.hparams,
            self.constraint,
            calls=4 if self.look_ahead else 2,
            inner_residual=own,
            step_size=fast,
            accepted=good,
            stop=jnp.where(good, RUNNING, BREAKDOWN),
        )
        both = jnp.hypot(own, other).astype(info.stationarity.dtype)
        return step_on(state, new, good), eqx.tree_at(lambda i: i.stationarity, info, both)


def require_value_problem(problem: BilevelProblem, asks: str) -> ValueProblem:
    """The problem, if both players of it are known.

    **Raises:** `ValueError` otherwise.
    """
    if not isinstance(problem, ValueProblem):
        raise ValueError(
            f"{asks}: problem: expected a MinimaxProblem (BilevelProblem.minimax(f)) or a "
            f"ConstrainedProblem, received a {type(problem).__name__}."
        )
    return problem
