"""An inner solver from whatever the user has."""

from typing import Any

import optax

from hypergrad.expected import makes_optimizer, received, uncalled
from hypergrad.inner.base import InnerSolver
from hypergrad.inner.function_solver import FunctionSolver
from hypergrad.inner.jaxopt_solver import JaxoptSolver
from hypergrad.inner.optax_solver import OptaxSolver


def as_inner_solver(solver: Any) -> InnerSolver:
    """An `InnerSolver` from whatever the user has.

    **Arguments:**

    - `solver`: an `InnerSolver` (returned as it is), an optax optimizer (`OptaxSolver` with its
      default number of steps), a jaxopt solver object, or a plain function
      `fn(params, hparams, batch) -> params`.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(solver, InnerSolver):
        return solver
    if isinstance(solver, optax.GradientTransformation):
        return OptaxSolver(solver)
    # Recognised by name: importing jaxopt only to ask would warn users who do not use it.
    if type(solver).__module__.split(".")[0] == "jaxopt":
        return JaxoptSolver(solver)
    made = makes_optimizer(solver)
    if callable(solver) and not isinstance(solver, type) and not made:
        return FunctionSolver(solver)
    given = f"the function {uncalled(solver)}" if made else received(solver)
    raise ValueError(
        "Inner solver: expected an InnerSolver, an optax optimizer, a jaxopt solver or a function "
        f"fn(params, hparams, batch) -> params, received {given}."
    )
