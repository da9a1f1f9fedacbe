"""A bilevel problem at one point: its losses as functions, and its linearised inner problem."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from hypergrad.implicit.adjoint import LinearSystem
from hypergrad.implicit.curvature import Curvature
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.residual import Slope, slope_of


class Arguments(eqx.Module):
    """What both losses are evaluated on: `params`, `hparams`, the two batches and the key."""

    params: PyTree
    hparams: PyTree
    inner_batch: PyTree
    outer_batch: PyTree
    key: Array | None

    def widened(self) -> "Arguments":
        """With every floating-point array in at least float32."""
        return jax.tree.map(_wide, self)

    @property
    def narrow(self) -> bool:
        """Whether an array has fewer digits than float32."""
        return any(_is_narrow(a.dtype) for a in jax.tree.leaves(eqx.filter(self, eqx.is_array)))


class Linearisation(eqx.Module):
    """Everything that implicit differentiation takes from a problem at one point.

    **Fields:**

    - `dynamic`, `static` and `h`, `h_static`: the parts of params and hparams, as of
      `equinox.partition`.
    - `residual`: the inner residual `r`.
    - `system`: its linearisation.
    - `slope`: `(w, λ, q) -> ⟨r(w, λ), q⟩`.
    """

    problem: BilevelProblem
    dynamic: PyTree
    static: PyTree
    h: PyTree
    h_static: PyTree
    outer_batch: PyTree
    key: Array | None
    residual: PyTree
    system: LinearSystem
    slope: Slope

    def outer(self, p: PyTree, lam: PyTree) -> tuple[Scalar, PyTree]:
        """The outer loss and its auxiliary output."""
        point, hparams = eqx.combine(p, self.static), eqx.combine(lam, self.h_static)
        return self.problem.outer_loss(point, hparams, self.outer_batch, self.key)

    def mixed(self, q: PyTree) -> PyTree:
        """`Cᵀ q`, for `q` like params."""
        return jax.grad(self.slope, argnums=1)(self.dynamic, self.h, q)

    def moved(self, s: PyTree) -> PyTree:
        """`C s`, for `s` like the differentiable part of hparams."""
        (image,) = jax.vjp(self.mixed, self.dynamic)[1](s)
        return image

    def unit(self) -> float:
        """The rounding unit: that of params, or of fewer digits that the losses use inside."""
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(self.dynamic)]

        def losses(p: PyTree, lam: PyTree) -> Scalar:
            return self.outer(p, lam)[0] + self.slope(p, lam, p)

        _collect_narrow(jax.make_jaxpr(losses)(self.dynamic, self.h).jaxpr, dtypes)
        return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def linearised(problem: BilevelProblem, curvature: Curvature, a: Arguments) -> Linearisation:
    """Linearise `problem` at the arguments `a`."""
    dynamic, static = eqx.partition(a.params, eqx.is_inexact_array)
    h, h_static = eqx.partition(a.hparams, eqx.is_inexact_array)
    residual, system = curvature.linearize(
        problem, dynamic, static, a.hparams, a.inner_batch, a.key
    )
    slope = slope_of(problem, dynamic, static, h, h_static, a.inner_batch, a.key)
    return Linearisation(
        problem, dynamic, static, h, h_static, a.outer_batch, a.key, residual, system, slope
    )


def _is_narrow(dtype: jnp.dtype) -> bool:
    """Whether it is a floating-point type of fewer digits than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _wide(leaf: PyTree) -> PyTree:
    return vector.widen(leaf) if eqx.is_inexact_array(leaf) else leaf


def _collect_narrow(program: jax.extend.core.Jaxpr, found: list[jnp.dtype]) -> None:
    """Append the floating-point types of fewer digits than float32 of what a program computes."""
    for eqn in program.eqns:
        for out in eqn.outvars:
            dtype = getattr(out.aval, "dtype", None)
            if dtype is not None and _is_narrow(dtype):
                found.append(dtype)
        for part in jax.tree.leaves(list(eqn.params.values())):
            part = getattr(part, "jaxpr", part)
            if isinstance(part, jax.extend.core.Jaxpr):
                _collect_narrow(part, found)
