"""Solvers of jaxopt, which is recognised and never imported."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.inner.base import InnerSolution, InnerSolver
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem


class JaxoptSolver(InnerSolver):
    """A jaxopt solver object, built by the user over the same inner loss as the problem.

    **Arguments:**

    - `solver`: e.g. `jaxopt.LBFGS(fun=inner)` with `inner(params, hparams, batch)`.
    - `arguments`: `arguments(hparams, batch) -> tuple`, what `solver.run` gets after the initial
      point. The default passes `(hparams, batch)`; a projected or proximal solver may want
      `(hyperparams_prox, hparams, batch)`.

    The residual is that of the problem at the returned point, not jaxopt's own error.
    """

    solver: Any
    arguments: Callable[[PyTree, PyTree], tuple] | None = None

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
        if self.arguments is None:
            arguments: tuple = (hparams, batch)
        else:
            arguments = self.arguments(hparams, batch)
        if problem.stochastic:
            arguments = (*arguments, key)
        params, info = self.solver.run(params, *arguments)
        residual = vector.norm(problem.residual(params, hparams, batch, key))
        iterations = jnp.asarray(getattr(info, "iter_num", 1), jnp.int32)
        return InnerSolution(params, None, iterations, residual)
