"""The capability of being asked for more or less accuracy."""

from typing import Protocol, Self, runtime_checkable

from jaxtyping import Scalar


@runtime_checkable
class HasTolerance(Protocol):
    """A solver, linear or inner, whose accuracy its caller may choose.

    `Newton` tightens its linear solver step by step, `HOAG` and `MAID` tighten both solvers of an
    estimator along the search.
    """

    def with_tol(self, tol: float | Scalar) -> Self:
        """This solver with another tolerance; in the units of its own `tol`."""
        ...
