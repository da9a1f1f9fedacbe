"""One protocol for inner solvers: whatever moves `params` towards `argmin inner(params, ...)`."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.problem import BilevelProblem


class InnerSolution(eqx.Module):
    """Where an inner solver stopped.

    - `params`: the inner point, same structure as given.
    - `state`: the solver's own state, to be handed to the next `run` (momenta, step sizes).
    - `iterations`: iterations spent; a plain function counts as one.
    - `residual`: the absolute norm `‖∂f/∂w‖` that the solver measured last.
    """

    params: PyTree
    state: PyTree
    iterations: Int[Array, ""]
    residual: Scalar


class InnerSolver(eqx.Module):
    """Anything that improves the inner parameters at fixed hyperparameters."""

    @abstractmethod
    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """Continue from `params` (and `state`, if it was returned by an earlier run).

        **Arguments:**

        - `problem`: supplies the inner loss or the optimality map.
        - `params`: where to start, any pytree; leaves that are not inexact arrays are carried.
        - `hparams`: the hyperparameters, held fixed.
        - `batch`: the inner data, handed to the inner loss as it is.
        - `state`: state of an earlier run, or `None` to start afresh.
        - `key`: for stochastic problems.
        """

    def init(self, problem: BilevelProblem, params: PyTree) -> PyTree:
        """The state that `run` starts from when it is given none; `None` if it keeps none."""
        return None
