"""Whether an estimator trains, where a training is made again."""

from typing import Any

from hypergrad.implicit.differentiation import ImplicitDifferentiation
from hypergrad.mistakes import check_estimator


def check_trains(estimator: Any, why: str) -> None:
    """Refuse an estimator that takes the parameters as trained.

    **Arguments:** `why`: what makes the training another one each time.

    **Raises:** `ValueError` that names estimators which train.
    """
    check_estimator(estimator)
    if isinstance(estimator, ImplicitDifferentiation) and estimator.solver is None:
        raise ValueError(
            f"estimator: expected one that trains, since {why}; received "
            "ImplicitDifferentiation without a solver. Give ImplicitDifferentiation(Newton()), "
            "another solver, or Unrolled(...)."
        )
