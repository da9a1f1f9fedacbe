"""How well a point and its multipliers solve a constrained problem."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.expected import require
from hypergrad.linear import vector
from hypergrad.outer.constrained import ConstrainedProblem
from hypergrad.restricted import RestrictedProblem


@dataclass(frozen=True)
class OptimalityReport:
    """The Karush-Kuhn-Tucker conditions at a point; `str(report)` says it in words.

    - `objective`: at the params.
    - `violation`: the largest excess over a bound (as measured, if the problem measures).
    - `stationarity`: `‖∂L/∂w‖`.
    - `complementarity`: largest `|λ_k (L_k − c_k)|`: a constraint binds, or its multiplier is zero.
    - `sensitivities`: `d objective* / d bound`, a pytree like the multipliers.
    - `feasible`: the violation is within the problem's tolerance.
    """

    objective: float
    violation: float
    stationarity: float
    complementarity: float
    sensitivities: PyTree
    feasible: bool

    @property
    def residual(self) -> float:
        """The largest of violation, stationarity and complementarity: zero at a solution."""
        return max(self.violation, self.stationarity, self.complementarity)

    def __str__(self) -> str:
        word = "feasible" if self.feasible else "infeasible"
        return (
            f"{word}: objective {self.objective:.6g}, violation {self.violation:.2g}, "
            f"stationarity {self.stationarity:.2g}, complementarity {self.complementarity:.2g}"
        )


def optimality_report(
    problem: ConstrainedProblem,
    params: PyTree,
    multipliers: PyTree,
    batch: PyTree = None,
    key: Array | None = None,
) -> OptimalityReport:
    """The conditions of optimality on all of the data given.

    **Arguments:**

    - `problem`, `batch`: the problem, and data; with `rows`, all examples.
    - `params`, `multipliers`: `result.params` and `result.hparams` of a run.
    - `key`: for stochastic problems.
    """
    example = "ConstrainedProblem(objective, constraints, bounds)"
    require("optimality_report", "problem", problem, ConstrainedProblem, example)
    objective, violation, slope, products = _measured(problem, params, multipliers, batch, key)
    return OptimalityReport(
        objective=float(objective),
        violation=float(violation),
        stationarity=float(slope),
        complementarity=float(products),
        sensitivities=problem.sensitivities(multipliers),
        feasible=bool(violation <= problem.tolerance),
    )


@eqx.filter_jit
def _measured(
    problem: ConstrainedProblem,
    params: PyTree,
    multipliers: PyTree,
    batch: PyTree,
    key: Array | None,
) -> tuple[Array, Array, Array, Array]:
    here = RestrictedProblem(problem, params, multipliers, batch, key=key)
    slope = vector.norm(jax.grad(here.inner_loss)(here.w))
    objective, excess = problem.parts(params, batch, key, measured=True)
    own = problem.lagrangian.of_batch(multipliers, batch)
    left = problem.lagrangian.after_slack(excess, own)
    products = [jnp.max(jnp.abs(p)) for p in jax.tree.leaves(jax.tree.map(jnp.multiply, own, left))]
    return objective, problem.violation(excess), slope, jnp.max(jnp.stack(products))
