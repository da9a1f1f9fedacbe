"""What is given in place of an estimator, answered in one line that says what to write."""

from typing import Any

import optax

from hypergrad.estimator import Estimator
from hypergrad.expected import makes_optimizer, received, uncalled
from hypergrad.inner.base import InnerSolver
from hypergrad.linear.base import LinearSolver


def check_estimator(estimator: Any) -> None:
    """Refuse what is no estimator.

    **Raises:** `ValueError` that says how to make one of what was given.
    """
    if isinstance(estimator, Estimator):
        return
    way_out = "pass one such as ImplicitDifferentiation() or Unrolled(optimizer, steps)"
    if isinstance(estimator, optax.GradientTransformation):
        way_out = "write ImplicitDifferentiation(optimizer) or Unrolled(optimizer, steps)"
    elif isinstance(estimator, InnerSolver):
        way_out = f"write ImplicitDifferentiation({type(estimator).__name__}(...))"
    elif isinstance(estimator, LinearSolver):
        way_out = f"write ImplicitDifferentiation(linear_solver={type(estimator).__name__}(...))"
    given = received(estimator)
    if makes_optimizer(estimator):
        given = f"the function {uncalled(estimator)}"
    raise ValueError(f"estimator: expected an Estimator, received {given}; {way_out}.")
