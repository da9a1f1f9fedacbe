"""A bilevel problem as a single loss, to stand inside another problem: three levels and more."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree, Scalar

from hypergrad.expected import require
from hypergrad.implicit.differentiable import implicit_solver
from hypergrad.inner import as_inner_solver
from hypergrad.linear.base import LinearSolver
from hypergrad.linear.cg import CG
from hypergrad.problem import BilevelProblem


class Reduced(eqx.Module):
    """The outer loss of a bilevel problem at its inner solution, as a function of `λ` alone.

        g(λ, μ) = outer(w*(λ, μ), (λ, μ)),     w*(λ, μ) = argmin over w of inner(w, (λ, μ))

    It is called `reduced(λ, μ, (inner batch, outer batch))`, which is the form of an inner loss: of
    a third level, whose hyperparameters are `μ`. Both losses of the lower problem get the pair
    `(λ, μ)` as their hyperparameters. Differentiable to any order, in both modes, by the implicit
    function theorem.

    **Arguments:**

    - `problem`: the lower problem.
    - `solver`: its inner solver, whatever `as_inner_solver` takes. Each evaluation solves to the
      end: a derivative of order two asks for an accurate solution.
    - `params`: where each solve starts.
    - `linear_solver`: for the derivatives of `w*`.
    - `strict`: as of `implicit_solver`.

    !!! example

        ```python
        lower = Reduced(BilevelProblem(train_loss, valid_loss), Newton(), w0)


        def top(lam, mu, batches):
            return test_loss(lower.solution(lam, mu, batches[0]), lam, mu, batches[1])


        out = hypergradient(
            BilevelProblem(lower, top),
            lam0,
            mu,
            (train, valid),
            (train, test),
            estimator=ImplicitDifferentiation(Newton()),
        )
        ```
    """

    problem: BilevelProblem
    solver: Any
    params: PyTree
    linear_solver: LinearSolver = CG()
    strict: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        require("Reduced", "problem", self.problem, BilevelProblem, "BilevelProblem(inner, outer)")
        require("Reduced", "linear_solver", self.linear_solver, LinearSolver, "CG()")
        as_inner_solver(self.solver)
        if self.problem.has_aux:
            raise ValueError(
                "Reduced: expected a problem without auxiliary output, received has_aux=True."
            )

    def solution(
        self, hparams: PyTree, upper: PyTree, batch: PyTree = None, key: Array | None = None
    ) -> PyTree:
        """`w*(λ, μ)`, to be differentiated through."""
        solve = implicit_solver(self.problem, self.solver, self.linear_solver, strict=self.strict)
        start = jax.lax.stop_gradient(eqx.filter(self.params, eqx.is_inexact_array))
        return solve(eqx.combine(start, self.params), (hparams, upper), batch, key)

    def __call__(
        self, hparams: PyTree, upper: PyTree, batches: PyTree = None, key: Array | None = None
    ) -> Scalar:
        """`g(λ, μ)`; `batches` is the pair of the lower problem's batches, or `None`."""
        inner, outer = (None, None) if batches is None else batches
        solution = self.solution(hparams, upper, inner, key)
        return self.problem.outer_loss(solution, (hparams, upper), outer, key)[0]
