"""A plain function as an inner solver."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.expected import require_function_fields
from hypergrad.inner.base import InnerSolution, InnerSolver
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem, same_form


class FunctionSolver(InnerSolver):
    """Any function `fn(params, hparams, batch) -> params`; a call counts as one iteration.

    For a stochastic problem it gets a fourth argument `key`.
    """

    fn: Callable

    def __check_init__(self) -> None:
        require_function_fields(self, "fn")

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
        """See `InnerSolver.run`."""
        extra = (key,) if problem.stochastic else ()
        solved = self.fn(params, hparams, batch, *extra)
        expected, received = (eqx.filter(t, eqx.is_array) for t in (params, solved))
        if not same_form(expected, received):
            raise ValueError(
                "The inner solver function must return params of the structure and shapes it was "
                f"given: expected {jax.tree.map(jnp.shape, expected)}, "
                f"received {jax.tree.map(jnp.shape, received)}."
            )
        residual = vector.norm(problem.residual(solved, hparams, batch, key))
        return InnerSolution(solved, None, jnp.ones((), jnp.int32), residual)
