"""Stochastic hypergradients whose inverse Hessian is a Neumann series over mini-batches.

    ∂F/∂λ − (∂²f/∂w∂λ)ᵀ q,        q = η Σ_{i=0}^{Q} Π_{j=1}^{i} (I − η H_j) ∂F/∂w

with the Hessian `H_j` of the inner loss on a mini-batch of its own, so that the products of
independent factors are unbiased: Ji, Yang & Liang, "Bilevel optimization: convergence analysis and
enhanced design" (2021), equation 7. Or one term of it in place of the sum, drawn at random (Ghadimi
& Wang 2018): `q = η Q Π_{j=1}^{i} (I − η H_j) ∂F/∂w`, `i` uniform on `0 … Q − 1`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from hypergrad.linear import vector
from hypergrad.outer.batches import Batches
from hypergrad.outer.inner_descent import on_fit
from hypergrad.outer.single_loop import outer_terms
from hypergrad.restricted import RestrictedProblem


def neumann_sum(
    here: RestrictedProblem,
    batches: Batches,
    first: Array | int,
    products: int,
    step: Array | float,
) -> tuple[Scalar, PyTree]:
    """The outer loss, and the hypergradient with all `products + 1` terms.

    The factors are on the inner mini-batches from number `first` on; the mixed product is on the
    batch of the linear system.
    """
    value, outer = outer_terms(here)

    def add(j: Array, carry: tuple) -> tuple:
        term, total = carry
        term = _factor(here, batches, first + j, step, term)
        return term, jax.tree.map(jnp.add, total, term)

    _, total = jax.lax.fori_loop(0, products, add, (outer.params, outer.params))
    return value, vector.axpy(-step, _mixed(here, total), outer.hparams)


def neumann_term(
    here: RestrictedProblem,
    batches: Batches,
    first: Array | int,
    products: int,
    step: Array | float,
    drawn: Int[Array, ""],
) -> tuple[Scalar, PyTree]:
    """The outer loss, and the hypergradient with term `drawn` alone, `products` times."""
    value, outer = outer_terms(here)
    term = jax.lax.fori_loop(
        0, drawn, lambda j, term: _factor(here, batches, first + j, step, term), outer.params
    )
    return value, vector.axpy(-step * products, _mixed(here, term), outer.hparams)


def _factor(
    here: RestrictedProblem, batches: Batches, fit: Array, step: Array | float, term: PyTree
) -> PyTree:
    """`(I − η H) term` on one mini-batch; the transposed Jacobian of an optimality map."""
    slope = on_fit(here, batches, fit).directional_derivative()
    return vector.axpy(-step, jax.grad(slope)(here.w, here.h, term), term)


def _mixed(here: RestrictedProblem, q: PyTree) -> PyTree:
    return jax.grad(here.directional_derivative(), argnums=1)(here.w, here.h, q)
