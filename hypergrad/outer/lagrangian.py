"""The Lagrangian of a constrained problem, as a function of params and multipliers."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar


class Lagrangian(eqx.Module):
    """`L(w, λ) = objective(w) + Σ λ_k (constraint_k(w) − bound_k)`.

    With `rows` the mean of the products over the batch in place of their sum, with `slack` less
    `‖λ‖² / (2 slack)`. The fields are the arguments of `ConstrainedProblem`.
    """

    objective: Callable | None
    constraints: Callable
    bounds: PyTree
    rows: Callable | None
    measured: Callable | None
    slack: float | Scalar | None

    def __call__(self, params: PyTree, multipliers: PyTree, batch: PyTree, *key: Array) -> Scalar:
        """`L`; the inner loss.

        **Raises:** `ValueError` for multipliers that do not fit the constraints.
        """
        objective, excess = self.parts(params, batch, *key)
        own = self.of_batch(multipliers, batch)
        _check_structure(own, excess)

        def term(m: Array, e: Array) -> Scalar:
            product = m * e if self.slack is None else m * e - m**2 / (2 * self.slack)
            return jnp.sum(product) if self.rows is None else jnp.mean(product)

        return objective + sum(jax.tree.leaves(jax.tree.map(term, own, excess)))

    def parts(
        self, params: PyTree, batch: PyTree, *key: Array, measured: bool = False
    ) -> tuple[Scalar, PyTree]:
        """The objective, and by how much each constraint exceeds its bound (negative: to spare).

        **Arguments:** `measured`: of the measured constraints, where there are such.
        """
        function = self.constraints
        if measured and self.measured is not None:
            function = self.measured
        values = jax.tree.map(jnp.asarray, function(params, batch, *key))
        if self.objective is None:
            objective = jnp.zeros((), jax.tree.leaves(values)[0].dtype)
        else:
            objective = jnp.asarray(self.objective(params, batch, *key))
        try:
            excess = jax.tree.map(
                lambda bound, part: jax.tree.map(lambda x: x - bound.astype(x.dtype), part),
                self.bounds,
                values,
            )
        except ValueError as error:
            raise ValueError(
                "ConstrainedProblem: bounds: expected a prefix of what the constraints return, "
                f"{jax.tree.structure(values)}, received {jax.tree.structure(self.bounds)}."
            ) from error
        return objective, excess

    def of_batch(self, multipliers: PyTree, batch: PyTree) -> PyTree:
        """The multipliers of a batch's constraints; all of them, without `rows`."""
        if self.rows is None:
            return multipliers
        rows = self.rows(batch)
        return jax.tree.map(lambda m: m[rows], multipliers)

    def into_rows(self, multipliers: PyTree, of_batch: PyTree, batch: PyTree) -> PyTree:
        """All multipliers, those of a batch replaced."""
        if self.rows is None:
            return of_batch
        rows = self.rows(batch)
        return jax.tree.map(
            lambda m, new: m.at[rows].set(new.astype(m.dtype)), multipliers, of_batch
        )

    def after_slack(self, excess: PyTree, multipliers: PyTree) -> PyTree:
        """What is left of the excess when slack has been bought: what the multipliers ascend."""
        if self.slack is None:
            return excess
        return jax.tree.map(lambda e, m: e - m / self.slack, excess, multipliers)


class NegativeDual(eqx.Module):
    """`−L(w, λ)`, at the minimiser `−d(λ)`; the outer loss."""

    lagrangian: Lagrangian

    def __call__(self, params: PyTree, multipliers: PyTree, batch: PyTree, *key: Array) -> Scalar:
        """`−L`."""
        return -self.lagrangian(params, multipliers, batch, *key)


def _check_structure(multipliers: PyTree, excess: PyTree) -> None:
    given, expected = (
        jax.tree.map(lambda x: tuple(jnp.shape(x)), tree) for tree in (multipliers, excess)
    )
    if given != expected:
        raise ValueError(
            f"hparams are the multipliers of the constraints: expected shapes {expected}, received "
            f"{given}; make them with problem.multipliers(params, batch)."
        )
